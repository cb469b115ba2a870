"""torchvision, imported when a back end first needs it: the hosts have it, the core does not need it."""

from __future__ import annotations

from types import ModuleType

from ..errors import FairAdapterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def torchvision_models(name: str) -> ModuleType:
    """The module ``torchvision.models``; ``name`` is the back end that asks.

    Raises:
        FairAdapterError: torchvision is missing or does not fit torch.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch fails too
        raise FairAdapterError(
            f"{name}: expected the package torchvision, which does not import ({error}); install the build "
            "that fits this torch: pip install torchvision"
        ) from error
    return models
