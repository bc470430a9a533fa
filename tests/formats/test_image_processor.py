"""Images become the pixels that the processors of transformers make with Pillow."""

import json
import pathlib
import sys

import numpy as np
import pytest

from jaxmem.models import ImageProcessor

FILE = dict(np.load(pathlib.Path(__file__).parents[1] / "reference/processed_images.npz"))
PROCESSORS = [name.removesuffix("_config") for name in FILE if name.endswith("_config")]
VIT = {"image_processor_type": "ViTImageProcessor"}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_reference(name):
    process = ImageProcessor.from_hf(json.loads(str(FILE[f"{name}_config"])))
    np.testing.assert_array_equal(process([FILE["image"]]), FILE[name])


def test_an_old_file_with_one_size_and_another_name_reads_the_same():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 7, "crop_size": 6}
    now = json.loads(str(FILE["clip_config"]))
    assert ImageProcessor.from_hf(old | {"resample": 3}) == ImageProcessor.from_hf(now)


def test_a_file_that_does_not_say_its_class_is_read_as_of_a_kind():
    assert ImageProcessor.from_hf({"size": 6}, "ConvNext").crop == (6, 6)
    assert ImageProcessor.from_hf({"size": 6, "do_resize": False}, "ConvNext").crop is None
    with pytest.raises(ValueError, match="feature_extractor_type is missing"):
        ImageProcessor.from_hf({"size": 6})


def test_an_image_of_a_file_and_a_grey_one_become_three_channels(tmp_path):
    image = pytest.importorskip("PIL.Image").fromarray(FILE["image"])
    image.save(tmp_path / "image.png")
    process = ImageProcessor.from_hf(json.loads(str(FILE["clip_config"])))
    np.testing.assert_array_equal(process([tmp_path / "image.png"]), FILE["clip"])
    assert process([image.convert("L"), image]).shape == (2, 3, 6, 6)


@pytest.mark.parametrize("change", [{"image_processor_type": "OwlImageProcessor"},
    {"do_pad": True}, {"size": {"longest_edge": 5, "shortest_edge": 4}}, {"image_std": [0, 1, 1]},
    {"resample": 6}, {"size": {"height": 0, "width": 2}}, {"twist": 2},
    {"do_rescale": 1}])  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(change):
    name = {"image_std": "std", "resample": "filter"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(ValueError, match=name):
        ImageProcessor.from_hf(VIT | change)


@pytest.mark.parametrize("images", ["a.png", FILE["image"], [FILE["image"] / 255], [3]])
def test_what_is_no_list_of_images_is_refused(images):
    with pytest.raises(TypeError, match=r"expected a (list|Pillow image)"):
        ImageProcessor()(images)


def test_images_that_end_with_different_sizes_or_channels_are_refused():
    with pytest.raises(ValueError, match="expected one shape"):
        ImageProcessor()([FILE["image"], FILE["image"][:5]])
    with pytest.raises(ValueError, match="1 channels, and the mean 3"):
        ImageProcessor()([FILE["image"][..., 0]])


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"jaxmem\[vision\]"):
        ImageProcessor()([FILE["image"]])
