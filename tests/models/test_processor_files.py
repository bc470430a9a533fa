"""The processor of a model comes from the files of its folder, of old and of new ones."""

import json
import types

import pytest

from jaxmem.models import ImageProcessor, processor_files

FILES = {  # what a model reads: (its object in processor_config.json, the class that it names)
    "images": ("image_processor", {"image_processor_type": "CLIPImageProcessor"}),
    "sounds": ("feature_extractor", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}),
    "spectrograms": ("feature_extractor", {"feature_extractor_type": "WhisperFeatureExtractor"}),
}


def config(reads, names=""):
    return types.SimpleNamespace(reads=reads, tensor_names=names)


@pytest.mark.parametrize("reads", FILES)
def test_a_folder_of_either_kind_gives_the_processor_of_what_a_model_reads(reads, tmp_path):
    key, hf = FILES[reads]
    read = lambda: processor_files.read_processor(tmp_path, config(reads))
    assert read() is None
    (tmp_path / "processor_config.json").write_text(json.dumps({key: hf}))
    new = read()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hf))
    assert new == read() and isinstance(new, processor_files._KINDS[reads][0])
    assert processor_files.read_processor(tmp_path, config("text")) is None


def test_a_file_of_images_without_a_class_is_read_as_that_of_the_model(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": 8}')
    read = lambda *model: processor_files.read_processor(tmp_path, config(*model))
    assert read("images", "vit") == ImageProcessor(resize=(8, 8))
    assert read("images") == ImageProcessor(resize=9, crop=(8, 8), filter=3)
    with pytest.raises(ValueError, match=r"preprocessor_config.json: size is 8, a field"):
        read("sounds")
