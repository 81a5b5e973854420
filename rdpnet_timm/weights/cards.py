"""Model cards of the shipped weights, as the Hugging Face Hub shows them, made from their JSON cards."""

from pathlib import Path
from typing import Any, Dict, List, Mapping

from timm.models._hub import generate_readme

from . import FOLDER, card, description, names

__all__ = ["markdown", "model_card", "write"]

CITATION = """@article{xu2022rdpnet,
  title   = {RDPNet: a single-path lightweight CNN with re-parameterization for CPU-type edge devices},
  author  = {Xu and Zhao and Xu},
  journal = {Journal of Cloud Computing},
  volume  = {11},
  number  = {54},
  year    = {2022},
  doi     = {10.1186/s13677-022-00330-5}
}"""


def model_card(name: str) -> Dict[str, Any]:
    """The card of shipped weights as ``timm.models.push_to_hf_hub(..., model_card=...)`` takes it.

    Args:
        name: such as ``'rdpnet_025_cifar.digits'``, see :func:`rdpnet_timm.weights.names`.
    """
    facts = card(name)
    usage = (
        "```python\n"
        "import timm  # with rdpnet-timm installed\n\n"
        f'model = timm.create_model("{name}", pretrained=True).eval()\n'
        "deployed = timm.utils.reparameterize_model(model)  # the same outputs, one path of convolutions\n"
        "```"
    )
    return {
        "tags": ["image-classification", "timm", "rdpnet-timm"],
        "license": "apache-2.0",
        "description": description(facts),
        "details": {
            "Network": "RDPNet: depthwise and pointwise convolutions with several branches in training, one path after "
            "an exact reparameterisation",
            "Training data": f"{facts['data']}, {facts['training_images']} images",
            "Classes": ", ".join(facts["classes"]),
            "Test images": facts["test_images"],
            "Correct, train form": f"{facts['accuracy_train_form']:.2f} %",
            "Correct, deploy form": f"{facts['accuracy_deploy_form']:.2f} %",
            "Parameters": f"{facts['parameters']:,} in the train form",
            "Precision of the file": facts["precision"],
            "Training": _in_effect(facts["recipe"]),
            "Seed": facts["seed"],
            "Machine": f"{facts['machine']}, {facts['seconds']} s, {facts['date']}",
            "SHA-256": facts["sha256"],
            "Paper": "https://doi.org/10.1186/s13677-022-00330-5",
        },
        "usage": usage,
        "citation": CITATION,
    }


def _in_effect(recipe: Mapping[str, Any]) -> Dict[str, Any]:
    """The settings of a recipe that change anything: not the size of small images where none were trained on."""
    return {key: value for key, value in recipe.items() if value and (key != "small_size" or recipe["small_epochs"])}


def markdown(name: str) -> str:
    """The card of shipped weights as a page."""
    lines = generate_readme(model_card(name), name).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def write(folder: Path = FOLDER) -> List[Path]:
    """Write the card of all shipped weights to ``folder`` as ``MODEL.TAG.md``."""
    files = [folder / f"{name}.md" for name in names()]
    for file in files:
        file.write_text(markdown(file.stem), encoding="utf-8")
    return files
