"""What PyTorch computes of cn2en: writes the logits of SENTENCES for translate_cn2en.py.

    pip install torch
    python experiments/quality/cn2en_torch.py cn2en*.whl cn2en.npz cn2en_torch.npz

`torch.nn.GRU`, `Embedding` and `Linear` take the tensors of the wheel, read by `torch.load` with
`weights_only=True`; only the ids of characters come from cn2en.npz. As in the package's own code,
the state goes through the encoder character by character, END after the last one, and then through
the decoder word by word, START before the first one; the most probable word is the next one. The
file has `source` (B, LONGEST + 1), `lengths` (B,), the words `written` (B, MOST), and the `logits`
(B, MOST, words) before each of them.
"""

import io
import sys
import zipfile

import numpy as np
import torch

LONGEST, MOST, START, END, WIDTH = 12, 12, 0, 1, 256
SENTENCES = (
    "我爱你",
    "你会说英语吗",
    "他是一个好学生",
    "我们明天去北京",
    "请给我一杯水",
    "她每天早上六点起床",
    "这本书很有意思",
    "昨天下雨了",
    "你叫什么名字",
    "我不知道该怎么办",
    "猫在桌子下面",
    "他比我高",
)


class Part(torch.nn.Module):
    """A table of words and a GRU, and of the decoder the product with the output's weight."""

    def __init__(self, tensors: dict):
        super().__init__()
        self.embedding = torch.nn.Embedding(*tensors["embedding.weight"].shape)
        self.gru = torch.nn.GRU(WIDTH, WIDTH)
        if "out.weight" in tensors:
            self.out = torch.nn.Linear(WIDTH, len(tensors["out.weight"]))
        self.load_state_dict(tensors)


def main() -> None:
    wheel, arrays, out = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        file = io.BytesIO(archive.read("cn2en/model.pth"))
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    encoder, decoder = (Part(checkpoint[name]) for name in ("encoder", "decoder"))
    ids = {x: i for i, x in enumerate(np.load(arrays)["characters"].tolist())}
    source = np.full((len(SENTENCES), LONGEST + 1), END)
    written = np.zeros((len(SENTENCES), MOST), int)
    logits = np.zeros((*written.shape, decoder.out.out_features), np.float32)
    for row, sentence in enumerate(SENTENCES):
        source[row, : len(sentence)] = [ids[x] for x in sentence]
        state, word = torch.zeros(1, 1, WIDTH), START
        for x in source[row, : len(sentence) + 1]:
            _, state = encoder.gru(encoder.embedding.weight[x][None, None], state)
        for i in range(MOST):
            inputs = decoder.embedding.weight[word][None, None].relu()
            y, state = decoder.gru(inputs, state)
            logits[row, i] = decoder.out(y[0, 0])
            written[row, i] = word = int(logits[row, i].argmax())
    lengths = [len(x) + 1 for x in SENTENCES]
    torch_version = torch.__version__
    np.savez(
        out, source=source, lengths=lengths, written=written, logits=logits, torch=torch_version
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
