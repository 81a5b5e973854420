"""Weights that come with the package: safetensors in the train form, each with a JSON card beside it.

A card says what was trained on what and how, what accuracy the file has in both forms, and the file's SHA-256 sum.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Union

from ..files import sha256

__all__ = ["FOLDER", "card", "check", "description", "names"]

FOLDER = Path(__file__).parent


def names() -> List[str]:
    """The names of all shipped weights, ``model.tag``, those of a model's default tag before its others."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def card(path: Union[str, Path]) -> Dict[str, Any]:
    """The card of the weights ``path``, or of shipped weights named like ``'rdpnet_025_cifar.digits'``."""
    path = Path(path) if Path(path).suffix == ".safetensors" else FOLDER / f"{path}.safetensors"
    return json.loads(path.with_suffix(".json").read_text())


def description(card: Dict[str, Any]) -> str:
    """What weights are, in a sentence, from their card."""
    return (
        f"{card['model']} trained on {card['data']} for {card['epochs']:g} epochs; of {card['test_images']} test "
        f"images it classifies {card['accuracy_train_form']:.2f} % correctly in the train form, "
        f"{card['accuracy_deploy_form']:.2f} % in the deploy form."
    )


def check(path: Union[str, Path]) -> None:
    """Compare a weight file with the sum on its card.

    Raises:
        RuntimeError: the file or its card is missing, or the file is another one than its card describes.
    """
    try:
        expected, found = card(path)["sha256"], sha256(path)
    except (OSError, KeyError, ValueError) as error:
        raise RuntimeError(
            f"the weights '{path}' are not there with their card, reinstall rdpnet-timm: {error}"
        ) from None
    if expected != found:
        raise RuntimeError(
            f"the weights '{path}' are damaged: their SHA-256 sum is {found}, their card says {expected}; reinstall "
            "rdpnet-timm"
        )
