"""Writes the table of docs/guides/train_in_little_memory.md from equal_loss.json.

python experiments/tables/training_table.py
"""

from pages import fill, read


def equal_loss():
    lines = [line for line in read("equal_loss.json")["summary"] if line["seeds"] >= 3]
    for line in sorted(lines, key=lambda line: -sum(bytes_of(line))):
        weights, state = bytes_of(line)
        gap, half = line["above_float32"], line["half_interval_95"]
        about = "" if gap == 0 == half else f"{gap:+.4f} ± {half:.4f}"
        form = f"{line['form']} | {weights:.2f} | {state:.2f} | {line['rate']:g}"
        yield f"{form} | {line['seeds']} | {line['loss']:.4f} | {about}"


def bytes_of(line):
    return line["weight_bytes_a_parameter"], line["state_bytes_a_parameter"]


if __name__ == "__main__":
    titles = "weights, optimizer | bytes of weights | of state | rate | seeds | loss | above f32"
    fill("guides/train_in_little_memory.md", "training_table.py", {equal_loss: titles})
