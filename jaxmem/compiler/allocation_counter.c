/* Counts the allocations of a process: preloaded, it stands before the C library's functions. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_int counting;
static atomic_long calls, large, large_bytes;
static atomic_size_t threshold;

void jaxmem_count(int on, size_t least) {
  if (on) {
    atomic_store(&calls, 0);
    atomic_store(&large, 0);
    atomic_store(&large_bytes, 0);
    atomic_store(&threshold, least);
  }
  atomic_store(&counting, on);
}

/* out: all allocations, those of at least the threshold, and the bytes of these. */
void jaxmem_counted(long* out) {
  out[0] = atomic_load(&calls);
  out[1] = atomic_load(&large);
  out[2] = atomic_load(&large_bytes);
}

static void note(size_t size) {
  if (!atomic_load_explicit(&counting, memory_order_relaxed)) return;
  atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
  if (size < atomic_load_explicit(&threshold, memory_order_relaxed)) return;
  atomic_fetch_add_explicit(&large, 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&large_bytes, (long)size, memory_order_relaxed);
}

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  note(size);
  return __libc_malloc(size);
}

void* calloc(size_t count, size_t size) {
  note(size && count > (size_t)-1 / size ? 0 : count * size);
  return __libc_calloc(count, size);
}

void* realloc(void* old, size_t size) {
  note(size);
  return __libc_realloc(old, size);
}

void* memalign(size_t alignment, size_t size) {
  note(size);
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  note(size);
  return __libc_memalign(alignment, size);
}

int posix_memalign(void** out, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) || (alignment & (alignment - 1)) || !alignment) return EINVAL;
  note(size);
  void* made = __libc_memalign(alignment, size);
  if (!made) return ENOMEM;
  *out = made;
  return 0;
}
