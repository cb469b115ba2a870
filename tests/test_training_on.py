"""Training on from an adapter file, in the place of fresh parts."""

import pytest
import torch

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.test_train import config, folder, uninterrupted
from fair_adapter.trainer.running.processes import Processes
from fair_adapter.trainer.training.run import train
from fair_adapter.trainer.training.setup import prepare

__all__ = ["config", "folder", "uninterrupted"]  # the fixtures


def test_training_goes_on_from_the_parts_of_a_file(config, uninterrupted, tmp_path):
    file = uninterrupted / "adapter.safetensors"
    start = f"adapter.start={file}"
    training = prepare(config(start, "target.text=gender=25/75;race=equal"), Processes("cpu", 4))
    training.adaptation.detach()
    before = FairnessAdapter.read(file).tensors
    found = training.adaptation.tensors()
    assert set(found) == set(before)
    assert all(torch.equal(value, before[name].to(value)) for name, value in found.items())
    path, finished = train(config(start, "optimizer.iterations=1", "target.text=gender=25/75;race=equal"))
    after = FairnessAdapter.read(path)
    assert finished and after.targets.default.marginal("gender").tolist() == [0.25, 0.75]
    assert any(not torch.equal(value, before[name].to(value)) for name, value in after.tensors.items())
    assert after.info.configuration["adapter"]["start"] == str(file)


def test_what_does_not_fit_the_file_is_refused(config, uninterrupted, tmp_path):
    file = uninterrupted / "adapter.safetensors"
    cases = (("rank=4", r"adapter\.rank: expected 3"), ("text_lora=false", "set adapter.text_lora=true"))
    for wrong, told in cases:
        with pytest.raises(FairAdapterError, match=told):
            prepare(config(f"adapter.start={file}", f"adapter.{wrong}"), Processes("cpu", 4))
    with pytest.raises(FairAdapterError, match=r"trained with no target\.vector"):
        conditioned = ("target.vector=cells", "target.range={gender: {female: [.1, .9]}}")
        prepare(config(f"adapter.start={file}", *conditioned), Processes("cpu", 4))
    with pytest.raises(FairAdapterError, match=r"gone\.safetensors"):
        prepare(config(f"adapter.start={tmp_path / 'gone.safetensors'}"), Processes("cpu", 4))


@pytest.mark.parametrize("alpha", ["0", "-1", ".nan"])
def test_a_scale_that_is_none_is_found_before_a_model_loads(config, alpha):
    with pytest.raises(FairAdapterError, match=r"adapter\.alpha: expected (more than 0|a finite number)"):
        config(f"adapter.alpha={alpha}")
