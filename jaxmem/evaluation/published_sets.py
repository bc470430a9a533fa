"""published_tasks: tasks of published sets, read from a folder with their files.

ARC-Easy (Clark et al., 2018) and PIQA (Bisk et al., 2020) as instructions with answers, CrowS-Pairs
(Nangia et al., 2020), WinoBias (Zhao et al., 2018), SST-2 (Socher et al., 2013), STS-B (Cer et al.,
2017), DialogSum (Chen et al., 2021), Multi30k (Elliott et al., 2016), German to English, and of
FewCLUE (Xu et al., 2021) tnews and eprstmt.
"""

import csv
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from ..core.arguments import takes
from .task import Task


@takes()
def published_tasks(folder: str | os.PathLike) -> dict[str, Task]:
    """{name: task} of the sets whose files are in `folder` or in its folders `tasks` and `zh`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is not as its set is published; names the file.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "sst2_dev.tsv").write_text("a fine film\\t1\\n")
        >>> published_tasks(folder)["sst2"].items
        ({'sentence': 'a fine film', 'label': 1},)
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with the files of tasks")
    found = {}
    for name, (files, read) in _SETS.items():
        paths = [_found(folder, file) for file in files]
        if any(path is None for path in paths):
            continue
        try:
            found[name] = read(name, *paths)
        except (KeyError, IndexError, ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{paths[0]} is not as {name} is published: {error}") from error
    return found


def _found(folder: pathlib.Path, file: str) -> pathlib.Path | None:
    paths = [folder / file, folder / "tasks" / file, folder / "zh" / file]
    return next(filter(pathlib.Path.is_file, paths), None)


def _instructions(word: str) -> Callable[[str, pathlib.Path], Task]:
    """A reader of questions whose choices are numbered in one text: "Answer1: ... Answer2: ..."."""

    def read(name: str, path: pathlib.Path) -> Task:
        items = []
        for entry in json.loads(path.read_text(encoding="utf-8")):
            text = entry["instruction"].split(": ", 1)[1].rsplit("\n\nAnswer format:", 1)[0]
            question, *choices = re.split(rf"\s+{word}\d+: ", text)
            number = int(re.fullmatch(r"[a-z]+(\d+)", entry["answer"])[1]) - 1
            items.append({"question": question, "choices": choices, "answer": number})
        items = [x for x in items if 0 <= x["answer"] < len(x["choices"]) and all(x["choices"])]
        prompt = "Question: {question}\nAnswer:"
        return Task(name, "choice", tuple(items), prompt, "choices", metric="acc_norm")

    return read


def _crows_pairs(name: str, path: pathlib.Path) -> Task:
    """The answer is the sentence that is more stereotypical: half of the answers are best."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    fields = ("sent_more", "sent_less", "bias_type")
    items = tuple({field: row[field] for field in fields} | {"answer": 0} for row in rows)
    return Task(name, "choice", items, "", ("{sent_more}", "{sent_less}"), group="bias_type")


def _winobias(name: str, pro: pathlib.Path, anti: pathlib.Path) -> Task:
    """The answer is the sentence whose pronoun fits the stereotype; the group is this pronoun."""
    read = lambda path: path.read_text(encoding="utf-8").splitlines()
    clean = lambda line: re.sub(r"[\[\]]", "", line.split(" ", 1)[1])
    items = []
    for one, other in zip(read(pro), read(anti), strict=True):
        pronoun = re.findall(r"\[(\w+)\]", one)[-1].lower()
        group = "male" if pronoun in ("he", "him", "his") else "female"
        items.append({"pro": clean(one), "anti": clean(other), "group": group, "answer": 0})
    return Task(name, "choice", tuple(items), "", ("{pro}", "{anti}"), group="group")


def _sst2(name: str, path: pathlib.Path) -> Task:
    rows = (line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    items = tuple({"sentence": text, "label": int(label)} for text, label in rows)
    prompt = "Review: {sentence}\nSentiment:"
    return Task(name, "choice", items, prompt, ("negative", "positive"), answer="label")


def _sst2_probe(name: str, dev: pathlib.Path, train: pathlib.Path) -> Task:
    """3,000 sentences to fit the probe on, at even distances."""
    items = _sst2(name, dev).items
    few = _sst2(name, train).sample(3000).items
    return Task(name, "probe", items, "{sentence}", answer="label", train=few)


def _stsb(name: str, path: pathlib.Path) -> Task:
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    items = tuple({"a": a, "b": b, "answer": float(score)} for a, b, score in rows)
    return Task(name, "pairs", items, choices=("{a}", "{b}"))


def _dialogsum(name: str, path: pathlib.Path) -> Task:
    items = tuple(
        {"dialogue": entry["dialogue"], "answer": entry["summary"]} for entry in _lines(path)
    )
    prompt = "{dialogue}\n\nSummary of the dialogue in one sentence:"
    return Task(name, "generation", items, prompt, metric="rouge_l")


def _multi30k(name: str, german: pathlib.Path, english: pathlib.Path) -> Task:
    """The answer is an English caption, which chrF compares (extra `eval`)."""
    read = lambda path: gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    pairs = zip(read(german), read(english), strict=True)
    items = tuple({"german": german, "answer": english} for german, english in pairs)
    prompt = "German: {german}\nEnglish:"
    return Task(name, "generation", items, prompt, metric="chrf")


def _tnews(name: str, path: pathlib.Path) -> Task:
    items = tuple(
        {"sentence": x["sentence"], "answer": _TNEWS[x["label_desc"].removeprefix("news_")]}
        for x in _lines(path)
    )
    prompt = "新闻标题：{sentence}\n类别："
    return Task(name, "choice", items, prompt, tuple(_TNEWS.values()), delimiter="")


def _eprstmt(name: str, path: pathlib.Path) -> Task:
    numbers = {"Negative": 0, "Positive": 1}
    rows = ({"sentence": x["sentence"], "answer": numbers[x["label"]]} for x in _lines(path))
    prompt = "评论：{sentence}\n情感："
    return Task(name, "choice", tuple(rows), prompt, ("负面", "正面"), delimiter="")


def _lines(path: pathlib.Path) -> Iterable[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


_TNEWS = {
    "story": "故事",
    "culture": "文化",
    "entertainment": "娱乐",
    "sports": "体育",
    "finance": "财经",
    "house": "房产",
    "car": "汽车",
    "edu": "教育",
    "tech": "科技",
    "military": "军事",
    "travel": "旅游",
    "world": "国际",
    "stock": "股票",
    "agriculture": "农业",
    "game": "电竞",
}
_SETS: dict[str, tuple[tuple[str, ...], Callable[..., Task]]] = {
    "arc_easy": (("ARC-Easy.json",), _instructions("Answer")),
    "piqa": (("piqa.json",), _instructions("Solution")),
    "sst2": (("sst2_dev.tsv",), _sst2),
    "crows_pairs": (("crows_pairs.csv",), _crows_pairs),
    "winobias": (("winobias_pro_type1_dev.txt", "winobias_anti_type1_dev.txt"), _winobias),
    "winobias_type2": (("winobias_pro_type2_dev.txt", "winobias_anti_type2_dev.txt"), _winobias),
    "dialogsum": (("dialogsum_dev.jsonl",), _dialogsum),
    "multi30k": (("multi30k_val.de.gz", "multi30k_val.en.gz"), _multi30k),
    "stsb": (("stsb_en_dev.csv",), _stsb),
    "sst2_probe": (("sst2_dev.tsv", "sst2_train.tsv"), _sst2_probe),
    "tnews": (("tnews.json",), _tnews),
    "eprstmt": (("eprstmt.json",), _eprstmt),
}
