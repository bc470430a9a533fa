"""A student comes nearer to its teacher on the texts that it writes itself."""

import dataclasses
import functools

import jax
import optax
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.training import DistillOptions, distill, fresh

SIZES = {"width": 16, "ffn": 24, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8}


@functools.cache
def made(seed=0):
    config = llama.Config(vocab=16, **SIZES)
    return fresh(jm.models.Model(config, llama.module(config), None, "tiny"), seed=seed)


@pytest.fixture(scope="module", autouse=True)
def promotion_of_users():
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        yield


@pytest.fixture(scope="module")
def teacher():
    teacher = made(seed=1)
    sharp = jax.tree.map(lambda w: 3 * w, teacher.params["head"])
    params = teacher.params | {"head": jm.encode(sharp, {"kernel": jm.Int(8)})}
    return dataclasses.replace(teacher, tensors=params)


def test_a_student_comes_nearer_to_an_encoded_teacher(teacher):
    rows = jm.data.PackedRows([[1, 2, 3, 4, 5, 6]] * 2, 8)
    options = DistillOptions(12, batch=2, width=8, share=0.75, kind="reverse")
    told = []
    student, losses = distill(
        made(),
        teacher,
        [[1, 2], [3, 4]],
        options=options,
        optimizer=optax.adam(0.02),
        texts=jm.data.Batches(rows, 2),
        progress=lambda step, steps, numbers: told.append(numbers["written"]),
    )
    assert len(losses) == 12 and {*told} == {True, False}
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    assert student.params["embed"]["embedding"].shape == (16, 16)


def test_other_vocabularies_are_refused_by_name(teacher):
    options = DistillOptions(1, batch=1, width=8)
    wider = jm.models.Model(llama.Config(vocab=24, **SIZES), {}, None, "tiny")
    words = [{"a": 0, "b": 1}, {"a": 0, "c": 1}]
    one, two = (
        dataclasses.replace(made(), tokenizer=Tokenizer(WordLevel(w, unk_token="a"))) for w in words
    )
    with pytest.raises(ValueError, match="the token 'b' is 1 in the student tiny and None in the"):
        distill(one, two, [[1]], options=options)
    with pytest.raises(ValueError, match="has 16 ids and the teacher tiny 24, expected one vocab"):
        distill(made(), wider, [[1]], options=options)
    with pytest.raises(ValueError, match="a prompt has 8 tokens, and a row takes 8"):
        distill(made(), teacher, [[1] * 8], options=options)
    with pytest.raises(ValueError, match="the student tiny is encoded"):
        distill(teacher, made(), [[1]], options=options)
    with pytest.raises(ValueError, match="there are no texts"):
        distill(made(), teacher, [[1]], options=DistillOptions(1, share=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share is 1.5, expected 0 to 1"),
        ({"sampling_temperature": -1.0}, "sampling_temperature is -1.0"),
        ({"kind": "all"}, "kind is 'all', expected"),
    ],
)
def test_options_that_nothing_computes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillOptions(1, **options)
