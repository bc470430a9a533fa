"""card: what compression did to a model, beside the dense one; or two cards item by item."""

import dataclasses
import json
import pathlib
import re
import sys
from typing import Annotated, Literal

from tyro.conf import arg

from ..evaluation.card_comparison import compare_cards
from ..evaluation.model_card import card
from ..io.scalar_writers import TensorBoard
from ..models import load
from . import options
from .output import Output
from .output_path import check_out_folder


@dataclasses.dataclass(frozen=True)
class MakeCard(options.SourceOptions):
    """Bytes, seconds, loss, answers, calibration, noise, attribution and groups, item by item.

    With --compare MODEL and the other name are folders that this command wrote.
    """

    _: dataclasses.KW_ONLY
    reference: Annotated[str | None, arg(metavar="MODEL")] = None
    """The dense model."""
    compare: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Another card, whose items are paired with those of the card MODEL."""
    suite: Literal["quick", "full"] = "quick"
    """Some items of each task, or all of them."""
    data: Annotated[str | None, arg(metavar="FOLDER")] = None
    """A folder with tasks: published sets, and JSONL files of your own."""
    text: Annotated[tuple[str, ...], arg(metavar="FILE [FILE ...]")] = ()
    """UTF-8 text for perplexity and KL divergence; of several, such as those of languages, each."""
    seen: options.TextFile = None
    """UTF-8 text that the dense model was trained on; how well a model tells it from --unseen."""
    unseen: options.TextFile = None
    """UTF-8 text of the same kind that it was not trained on."""
    words: options.TextFile = None
    """A list of words, one a line, that are counted in what the models write after --text."""
    explain: tuple[Literal["occlusion", "gradients", "shapley", "swaps"], ...] | None = None
    """What is asked of the words of some texts; by default what the suite has."""
    out: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where the card and its items are written; a suite that was stopped goes on."""
    track: Annotated[str | None, arg(metavar="DIR")] = None
    """A directory for event files of TensorBoard."""

    def run(self, output: Output) -> dict:
        """Makes the card, or compares two, and shows a table."""
        if self.compare is not None:
            return self._compare(output)
        if self.reference is None:
            raise ValueError("a card wants the dense model: give --reference, or --compare a card")
        files = {"seen": self.seen, "unseen": self.unseen}
        texts = {name: options.read(path) for name, path in files.items() if path is not None}
        texts |= self._text()
        words = None if self.words is None else options.read(self.words).split("\n")
        words = words and [word.strip() for word in words if word.strip()]
        out = None if self.out is None else check_out_folder(self.out)
        writer = TensorBoard(self.track) if self.track else None
        model, reference = self.load(), load(self.reference, dtype=self.dtype)
        with output.stages() as progress:
            found = card(
                model,
                reference,
                suite=self.suite,
                data=self.data if self.data is not None else (),
                **texts,
                words=words,
                explain=self.explain,
                out=out,
                progress=progress,
                writer=writer,
            )
        line = " ".join(["jaxmem", *sys.argv[1:]])
        found = dataclasses.replace(found, origin={**found.origin, "command": line})
        output.table(f"{model.source} beside {reference.source}", *found.table())
        if found.llama_cpp:
            output.say(found.llama_cpp)
        if out is not None:
            found.save(out)
            output.note(f"{out / 'card.json'}, README.md and the items are written")
        return json.loads(found.to_json())

    def _text(self) -> dict[str, str | dict[str, str]]:
        """{"text": the text, or texts by the names of their files}; nothing without one."""
        if len(self.text) < 2:
            return {"text": options.read(self.text[0])} if self.text else {}
        name = lambda path: re.sub(r"[^A-Za-z0-9_.-]", "_", pathlib.Path(path).stem)
        named = {name(path): options.read(path) for path in self.text}
        if len(named) < len(self.text):
            raise ValueError(f"--text names {', '.join(self.text)}, expected files of other names")
        return {"text": named}

    def _compare(self, output: Output) -> dict:
        """Pairs the items of two cards."""
        if self.reference is not None or self.track is not None:
            raise ValueError(
                "--compare takes two cards that are there, and no --reference and no --track"
            )
        found = compare_cards(self.model, self.compare)
        names = {name: None for row in found.values() for name in row}
        cell = lambda value: f"{value:.4g}" if isinstance(value, float) else value
        rows = [[task, *(cell(row.get(name, "")) for name in names)] for task, row in found.items()]
        title = f"from {pathlib.Path(self.model).name} to {pathlib.Path(self.compare).name}"
        output.table(title, ["task", *names], [[str(x) for x in row] for row in rows])
        plain = lambda x: dataclasses.asdict(x) if dataclasses.is_dataclass(x) else str(x)
        return json.loads(json.dumps(found, default=plain))
