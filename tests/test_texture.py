"""Fine detail of aligned faces."""

import pytest
import torch

from fair_adapter.trainer.evaluation.texture import skin_texture


def test_contrast_of_a_fine_pattern_on_skin_of_any_tone():
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    pattern = (1 - 2 * ((rows + columns) % 2)).float()  # a chessboard of single pixels
    faces = torch.stack([tone * (1 + 0.1 * pattern).expand(3, -1, -1) for tone in (0.2, 0.8)])
    assert skin_texture(faces).tolist() == pytest.approx([0.1, 0.1], rel=1e-3)


def test_shading_and_background_are_no_texture():
    shade = torch.linspace(0.3, 0.7, 256).expand(1, 3, 256, 256)
    assert float(skin_texture(shade)) < 1e-3
    framed = torch.full((1, 3, 256, 256), 0.5)
    framed[..., :40, :] = torch.rand(3, 40, 256, generator=torch.Generator().manual_seed(0))
    assert float(skin_texture(framed)) == pytest.approx(0.0, abs=1e-6)
    assert skin_texture(framed[:0]).shape == (0,)


def test_blur_takes_it_away():
    noisy = 0.5 + 0.05 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noisy, 7, 1, 3)
    assert float(skin_texture(blurred)) < 0.3 * float(skin_texture(noisy))
