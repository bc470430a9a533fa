"""Writes tokenizers/NAME/: the files of small vocabularies, and the ids of other libraries.

Wants `pip install transformers sentencepiece tiktoken tokenizers` (made with transformers 5.24,
sentencepiece 0.2.3, tiktoken 0.14); the tests do not. The ids of BPE and WordPiece are those of
transformers, of SentencePiece and tiktoken their own, with the tokens that models put around them.
"""

import base64
import io
import json
import pathlib
import shutil

import sentencepiece
import tiktoken
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

FOLDER = pathlib.Path(__file__).with_name("tokenizers")
TEXTS = [
    "In 1984  he'd paid 12345 kr. for it, ½ of what SHE'LL ask;\n\n\tnaïve  ",
    " 東京 is big 👩‍🚀🙂, 你好，世界！",
    "the cat and the other cats, e.g. 3.14 and 1,000",
    "",
]
CORPUS = [*TEXTS, "the cat sat on the other mat and then he asked her what it was"] * 4
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def folder(name, **config):
    path = FOLDER / name
    path.mkdir(parents=True)
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return path


def write_ids(path, encode):
    rows = [{"text": text, "ids": list(map(int, encode(text)))} for text in TEXTS]
    (path / "ids.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(path.name, sum(f.stat().st_size for f in path.iterdir()), [len(r["ids"]) for r in rows])


def by_transformers(path):
    write_ids(path, tf.AutoTokenizer.from_pretrained(path).encode)


def bpe(name, special, **config):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=special,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    path = folder(name, **config)
    tokenizer.model.save(str(path))
    by_transformers(path)


def clip():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, end_of_word_suffix="</w>",
                                  special_tokens=["<|startoftext|>", "<|endoftext|>"])  # fmt: skip
    tokenizer.train_from_iterator([t.lower() for t in CORPUS], trainer)
    path = folder("clip", tokenizer_class="CLIPTokenizer")
    tokenizer.model.save(str(path))
    by_transformers(path)


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([t.lower() for t in CORPUS], trainer)
    path = folder("wordpiece", tokenizer_class="BertTokenizer", do_lower_case=True)
    tokenizer.model.save(str(path))
    by_transformers(path)


def pieces(name, file, before, after, options, **config):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(t for t in CORPUS if t != TEXTS[1]),
        model_writer=out,
        minloglevel=2,
        **options,
    )
    path = folder(name, **config)
    (path / file).write_bytes(out.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    own = fairseq if name == "xlm_roberta" else list
    write_ids(path, lambda text: [*before, *own(model.encode(text)), *after])


def fairseq(ids):
    """XLM-RoBERTa's numbers of SentencePiece's, whose <unk> is 0."""
    return [i + 1 if i else 3 for i in ids]


def xlm_roberta():
    options = dict(model_type="unigram", vocab_size=53, normalization_rule_name="identity")
    pieces("xlm_roberta", "sentencepiece.bpe.model", [0], [2], options,
           tokenizer_class="XLMRobertaTokenizer")  # fmt: skip


def ranks():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(b): b for b in shown}
    byte |= {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(shown)))}
    vocabulary = {bytes(byte[c] for c in t): i for t, i in tokenizer.get_vocab().items()}
    path = folder("tiktoken", tokenizer_class="LlamaTokenizer", bos_token="<|begin_of_text|>",
                  added_tokens_decoder={"310": {"content": "<|begin_of_text|>", "special": True}},
                  add_bos_token=True)  # fmt: skip
    ranked = sorted(vocabulary.items(), key=lambda item: item[1])
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranked]
    (path / "tokenizer.model").write_bytes(b"".join(lines))
    options = dict(mergeable_ranks=vocabulary, special_tokens={"<|begin_of_text|>": 310})
    encoding = tiktoken.Encoding("own", pat_str=PATTERN, **options)
    write_ids(path, lambda text: [310, *encoding.encode(text)])


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    end = "<|endoftext|>"
    bpe("gpt2", [end], tokenizer_class="GPT2Tokenizer", eos_token=end, bos_token=end, unk_token=end)
    bpe("qwen2", [end], tokenizer_class="Qwen2Tokenizer", eos_token=end, pad_token=end)
    bpe("roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], tokenizer_class="RobertaTokenizer")
    clip()
    wordpiece()
    bpe_options = dict(model_type="bpe", vocab_size=330, byte_fallback=True,
                       normalization_rule_name="identity",
                       remove_extra_whitespaces=False)  # fmt: skip
    pieces("llama", "tokenizer.model", [1], [], bpe_options, tokenizer_class="LlamaTokenizer")
    unigram = dict(model_type="unigram", vocab_size=54, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
                   normalization_rule_name="identity")  # fmt: skip
    pieces("t5", "spiece.model", [], [1], unigram, tokenizer_class="T5Tokenizer", extra_ids=0)
    xlm_roberta()
    ranks()


if __name__ == "__main__":
    main()
