"""Writes quantized/NAME/: tiny quantized checkpoints, and the logits of their weights.

    python tests/reference/make_quantized.py [NAME ...]

Wants `pip install torch transformers safetensors bitsandbytes accelerate compressed-tensors
"mlx[cpu]"` and `pip install --no-deps auto-gptq==0.7.1 autoawq==0.2.7.post3` (made with torch 2.13,
transformers 5.24, bitsandbytes 0.49, compressed-tensors 0.20, mlx 0.32); the tests do not.
bitsandbytes, compressed-tensors, fp8 and mxfp4 are computed by transformers from the files; MLX
decodes its own, compressed-tensors the codes of NVFP4. AutoGPTQ's linear for CPUs packs and
computes GPTQ; of the second version, whose zero points are one larger, it packs the words. AutoAWQ
decodes what the script packs for it.
"""

import importlib.util
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
import transformers as tf
from quantized_files import FOLDER, SIZES, drawn, linears, llama, loaded, others, write
from safetensors.torch import load_file


def file_of(package, path):
    """A file of a package as a module; the package itself wants a GPU, or an older transformers."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, f"{folder}/{path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(codes, bits):
    """int32 words of codes (length, columns), bit by bit along the first axis."""
    length, columns = codes.shape
    out = np.zeros((length * bits // 32, columns), np.uint32)
    for i in range(length * bits):
        bit = codes[i // bits].astype(np.uint32) >> i % bits & 1
        out[i // 32] |= bit << np.uint32(i % 32)
    return torch.from_numpy(out.view(np.int32))


def integers(w, bits, groups, symmetric):
    """Codes (k, n), zero points and scales (groups, n) of a weight (n, k).

    `groups` (k,) has the group of each input.
    """
    w, top = w.detach().numpy().T, 2**bits - 1
    codes, zeros, scales = np.zeros(w.shape, int), [], []
    for g in range(groups.max() + 1):
        part = w[groups == g]
        low, high = part.min(0), part.max(0)
        if symmetric:
            high = np.abs(part).max(0)
            low = -high
        scale = ((high - low) / top).astype(np.float16).astype(np.float32)
        zero = np.full(low.shape, 2 ** (bits - 1)) if symmetric else np.round(-low / scale)
        zero = zero.clip(0, top)  # 0 is stored as the largest number in the first format
        codes[groups == g] = (np.round(part / scale) + zero).clip(0, top)
        zeros.append(zero)
        scales.append(scale)
    return codes, np.stack(zeros).astype(int), np.stack(scales)


def gptq(name, bits, size, *, ordered=False, symmetric=False, form="gptq", layers=2):
    model, tensors = llama(layers), {}
    modules, rng = linears(model), np.random.default_rng(0)
    linear = file_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    for stem, module in modules.items():
        groups = np.arange(module.weight.shape[1]) // size
        groups = rng.permutation(groups) if ordered else groups
        codes, zeros, scales = integers(module.weight, bits, groups, symmetric)
        module.weight.data = torch.tensor(((codes - zeros[groups]) * scales[groups]).T).float()
        theirs = linear(bits, size, *codes.shape, False, weight_dtype=torch.float32)
        theirs.pack(module, torch.tensor(scales.T), torch.tensor(zeros.T).float(),
                    torch.tensor(groups.astype(np.int32)))  # fmt: skip
        one_more = 0 if form == "gptq" else sum(1 << i for i in range(0, 32, bits))
        tensors[f"{stem}.qweight"] = theirs.qweight
        tensors[f"{stem}.qzeros"] = theirs.qzeros + one_more
        tensors[f"{stem}.scales"] = theirs.scales.half()
        if ordered:
            tensors[f"{stem}.g_idx"] = theirs.g_idx
        assert np.array_equal(theirs.qweight, words(codes, bits))
        model.set_submodule(stem, theirs)
    config = dict(quant_method="gptq", bits=bits, group_size=size, desc_act=ordered,
                  sym=symmetric, checkpoint_format=form, damp_percent=0.01, lm_head=False,
                  true_sequential=True, pack_dtype="int32")  # fmt: skip
    write(name, model, tensors | others(model, modules), dict(quantization_config=config), model)


def awq(name):
    model, tensors = llama(2), {}
    modules = linears(model)
    decode = file_of("awq", "utils/packing_utils.py").dequantize_gemm
    for stem, module in modules.items():
        groups = np.arange(module.weight.shape[1]) // 32
        codes, zeros, scales = integers(module.weight, 4, groups, False)
        for end, array in (("qweight", codes), ("qzeros", zeros)):
            out = np.zeros((array.shape[0], array.shape[1] // 8), np.uint32)
            for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                out |= array[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
            tensors[f"{stem}.{end}"] = torch.from_numpy(out.view(np.int32))
        tensors[f"{stem}.scales"] = torch.from_numpy(scales).half()
        packed = (tensors[f"{stem}.{end}"] for end in ("qweight", "qzeros"))
        module.weight.data = decode(*packed, tensors[f"{stem}.scales"].float(), 4, 32).T
        assert torch.equal(module.weight, torch.tensor(
            ((codes - zeros[groups]) * scales[groups]).T).float())  # fmt: skip
    config = dict(quant_method="awq", bits=4, group_size=32, version="gemm", zero_point=True,
                  modules_to_not_convert=None)  # fmt: skip
    write(name, model, tensors | others(model, modules), dict(quantization_config=config), model)


def fp8_blocks(name):
    """DeepSeek-V3's form, with blocks of 32 x 32."""
    model, tensors = llama(1), {}
    modules = linears(model)
    for stem, module in modules.items():
        w = module.weight.detach()
        rows, columns = w.shape[0] // 32, w.shape[1] // 32
        scale, codes = torch.zeros(rows, columns), torch.zeros(w.shape)
        for i in range(rows):
            for j in range(columns):
                at = (slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32))
                scale[i, j] = w[at].abs().max() / 448
                codes[at] = w[at] / scale[i, j]
        tensors[f"{stem}.weight"] = codes.to(torch.float8_e4m3fn)
        tensors[f"{stem}.weight_scale_inv"] = scale
    config = dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[32, 32],
                  fmt="e4m3")  # fmt: skip
    write(name, model, tensors | others(model, modules), dict(quantization_config=config))


def fp8_channels(name):
    model, tensors = llama(1), {}
    modules = linears(model)
    for stem, module in modules.items():
        w = module.weight.detach()
        scale = w.abs().amax(1, keepdim=True) / 448
        tensors[f"{stem}.weight"] = (w / scale).to(torch.float8_e4m3fn)
        tensors[f"{stem}.weight_scale"] = scale
    weights = dict(num_bits=8, type="float", strategy="channel", symmetric=True, dynamic=False)
    inputs = weights | dict(strategy="token", dynamic=True)
    group = dict(targets=["Linear"], weights=weights, input_activations=inputs,
                 format="float-quantized")  # fmt: skip
    config = dict(quant_method="compressed-tensors", format="float-quantized", ignore=["lm_head"],
                  quantization_status="compressed", config_groups=dict(group_0=group))  # fmt: skip
    write(name, model, tensors | others(model, modules), dict(quantization_config=config))


def nvfp4(name):
    """NVFP4A16 of llm-compressor; transformers would decode it in bfloat16."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    model, tensors = llama(2), {}
    modules = linears(model)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for stem, module in modules.items():
        w = module.weight.detach().reshape(len(module.weight), -1, 16)
        whole = 448 * 6 / w.abs().max()
        scale = (w.abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn)
        ratio = w / (scale.float() / whole)[..., None]
        codes = (ratio.abs()[..., None] - levels).abs().argmin(-1) + 8 * (ratio < 0)
        codes = codes.reshape(len(w), -1).to(torch.uint8)
        tensors[f"{stem}.weight_packed"] = codes[:, ::2] | codes[:, 1::2] << 4
        tensors[f"{stem}.weight_scale"] = scale
        tensors[f"{stem}.weight_global_scale"] = whole.reshape(1)
        packed = tensors[f"{stem}.weight_packed"]
        values = unpack_fp4_from_uint8(packed, *codes.shape, torch.float32)
        module.weight.data = values * (scale.float() / whole).repeat_interleave(16, 1)
    weights = dict(num_bits=4, type="float", strategy="tensor_group", group_size=16,
                   symmetric=True, dynamic=False)  # fmt: skip
    group = dict(targets=["Linear"], weights=weights, format="nvfp4-pack-quantized")
    config = dict(quant_method="compressed-tensors", format="nvfp4-pack-quantized",
                  ignore=["lm_head"], quantization_status="compressed",
                  config_groups=dict(group_0=group))  # fmt: skip
    write(name, model, tensors | others(model, modules), dict(quantization_config=config), model)


def bitsandbytes(name, layers, **options):
    """What transformers and bitsandbytes write themselves."""
    with tempfile.TemporaryDirectory() as folder:
        llama(layers).save_pretrained(folder)
        model = loaded(folder, quantization_config=tf.BitsAndBytesConfig(**options))
        model.save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors")
    config = model.config.to_dict()  # without the method once the weights are decoded
    write(name, model, tensors, config, model.dequantize(torch.float32))


def mlx(name, bits, group, **own):
    """`own` has the bits of modules that differ, by the ends of their names."""
    import mlx.core as mx

    model, tensors = llama(2), {}
    said = dict(group_size=group, bits=bits)
    config = dict(said)
    for stem, module in (linears(model) | {"model.embed_tokens": model.model.embed_tokens}).items():
        width = own.get(stem.rpartition(".")[2], bits)
        if width != bits:
            config[stem] = dict(group_size=group, bits=width)
        w = mx.array(module.weight.detach().numpy()).astype(mx.float16)
        parts = mx.quantize(w, group_size=group, bits=width)
        for end, part in zip(("weight", "scales", "biases"), parts):
            tensors[f"{stem}.{end}"] = torch.from_numpy(np.array(part).copy())
        dense = mx.dequantize(*(p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in parts),
                              group_size=group, bits=width)  # fmt: skip
        module.weight.data = torch.from_numpy(np.array(dense.astype(mx.float32)).copy())
    stems = {name.rpartition(".")[0] for name in tensors}
    write(name, model, tensors | others(model, stems),
          dict(quantization=config, quantization_config=config), model)  # fmt: skip


def mxfp4(name):
    torch.manual_seed(0)
    sizes = SIZES | dict(num_hidden_layers=1, hidden_size=32, intermediate_size=32, head_dim=16,
                         num_local_experts=3, num_experts_per_tok=2, sliding_window=4)  # fmt: skip
    model, rng = drawn(tf.GptOssForCausalLM(tf.GptOssConfig(**sizes))), np.random.default_rng(0)
    tensors = {n: t for n, t in model.state_dict().items()
               if not n.endswith(("gate_up_proj", "down_proj"))}  # fmt: skip
    for n, rows in (("gate_up_proj", 64), ("down_proj", 32)):
        stem = f"model.layers.0.mlp.experts.{n}"
        blocks = rng.integers(0, 256, (3, rows, 1, 16), np.uint8)
        tensors[f"{stem}_blocks"] = torch.from_numpy(blocks)
        scales = rng.integers(122, 126, (3, rows, 1)).astype(np.uint8)
        tensors[f"{stem}_scales"] = torch.from_numpy(scales)
    config = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"])
    write(name, model, tensors, dict(quantization_config=config, tie_word_embeddings=True))


CHECKPOINTS = {
    "gptq": lambda name: gptq(name, 4, 32),
    "gptq_2_bits": lambda name: gptq(name, 2, 32, layers=1),
    "gptq_activation_order": lambda name: gptq(name, 3, 32, ordered=True),
    "gptq_v2": lambda name: gptq(name, 8, 64, symmetric=True, form="gptq_v2", layers=1),
    "awq": awq,
    "fp8_blocks": fp8_blocks,
    "fp8_channels": fp8_channels,
    "nvfp4": nvfp4,
    "bitsandbytes_nf4": lambda name: bitsandbytes(
        name, 1, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32),
    "bitsandbytes_fp4": lambda name: bitsandbytes(
        name, 1, load_in_4bit=True, bnb_4bit_quant_type="fp4",
        bnb_4bit_compute_dtype=torch.float32),
    "bitsandbytes_int8": lambda name: bitsandbytes(name, 1, load_in_8bit=True),
    "mlx": lambda name: mlx(name, 4, 64, down_proj=6, v_proj=3),
    "mxfp4": mxfp4,
}  # fmt: skip


if __name__ == "__main__":
    for name in sys.argv[1:] or CHECKPOINTS:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        CHECKPOINTS[name](name)
