"""A pytest plugin that runs timm's own model tests, whose files stay as they are, on the rdpnet models alone.

timm's tests choose their models in three ways, and each is led to ours:

- ``list_models(...)`` at import, with ``FEAT_INTER_FILTERS`` naming modules: it lists our models only, and the module
  ``rdpnet`` is added to every choice of modules;
- names written into ``@pytest.mark.parametrize``: for the tests in ``REPARAMETRISED``, ours take their places;
- names written into the test: for the tests in ``STAND_IN``, ``create_model`` creates ours whatever is asked for.

With ``RDPNET_FORM=deploy`` every model is created with ``inference_mode=True``.
"""

import os

import pytest
import timm

MODELS = timm.list_models("rdpnet_*")
STRIDED = [name for name in MODELS if not name.endswith("_cifar")]  # the stem has stride 2, the last map stride 32
DEPLOY = os.environ.get("RDPNET_FORM") == "deploy"

# test: the models it fits. A test of the train form's branches or of both forms has no deploy variant.
REPARAMETRISED = {
    "test_reset_classifier_keeps_pool": MODELS,
    "test_features_only_grad_checkpointing_backward": MODELS,
    "test_model_features_output_stride": STRIDED,
    "test_pruned_features_torchscript": MODELS,
    "test_feature_getter_stage_ends_torchscript": MODELS,
    "test_prune_intermediate_layers_params_used": MODELS,
    "test_head_hidden_size": MODELS,
    "test_features_only_feature_cls_class": MODELS,
    "test_forward_after_prune_intermediate_layers": MODELS,
    "test_prune_intermediate_layers_last_feature": MODELS,
    "test_prune_to_stem_feature": MODELS,
    "test_forward_intermediates_stop_early_final_norm": MODELS,
    "test_resnetv2_stem_feature_odd_size": STRIDED,
    "test_model_forward_torchscript_with_features_fx": MODELS,
    "test_model_init_weights_after_to_empty": MODELS,
    "test_mobile_model_fusion_features": MODELS,
    "test_headless_checkpoint_reload": MODELS,
    "test_freeze_unfreeze_root_parameters": MODELS,
    "test_export_tracks_reset_pool_in_head": MODELS,
    "test_export_tracks_reset_classifier_structure": MODELS,
}
STAND_IN = {
    "test_feature_hook_net_grad_checkpointing_order": MODELS,
    "test_resnet_pruned_grad_checkpointing": MODELS,
    "test_script_resolution_defaults_to_multispectral_source": MODELS,
    "test_conv_model_image_size_is_preprocessing_only": MODELS,
    "test_export_data_config_test_size_roundtrip": MODELS,
}
TRAIN_FORM_ONLY = {"test_mobile_model_fusion_features"}  # it reparameterises
# What a re-parametrised test passes beside the model's name, where that is not "no further arguments".
OTHER_VALUES = {"stop_early_final": True, "num_classes": 3, "pool": "max", "reload_naflex": None}

_list_models, _create_model = timm.list_models, timm.create_model


def _list_ours(filter="", module="", **kwargs):
    modules = [module] if isinstance(module, str) else [*module, "rdpnet"]
    return [name for name in _list_models(filter, modules if any(modules) else "", **kwargs) if "rdpnet" in name]


def _create_ours(model_name, *args, **kwargs):
    kwargs.pop("img_size", None)  # for the transformers that such a test was written for
    if DEPLOY:
        kwargs["inference_mode"] = True
    return _create_model(model_name, *args, **kwargs)


timm.list_models, timm.create_model = _list_ours, _create_ours


@pytest.fixture(autouse=True)  # pytest sets up a parametrised fixture that no test names only if it is automatic
def stand_in(request, monkeypatch):
    if not hasattr(request, "param"):
        return

    def create_model(model_name, *args, **kwargs):
        saved = model_name.startswith("local-dir:")  # what the test wrote itself
        return _create_ours(model_name if saved else request.param, *args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(request.module, "create_model", create_model, raising=False)


def _replace_models(mark, models):
    """``mark`` with our models as its values, if it is the one that chooses the model."""
    names = mark.args[0] if mark.name == "parametrize" else ""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if "model_name" not in names:
        return mark
    other = {name: OTHER_VALUES.get(name, {}) for name in names}
    values = [tuple(dict(other, model_name=model)[name] for name in names) for model in models]
    return pytest.mark.parametrize(names, values, ids=models).mark


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    test = metafunc.function.__name__
    if test in REPARAMETRISED:
        marks = metafunc.definition.own_markers
        marks[:] = [_replace_models(mark, REPARAMETRISED[test]) for mark in marks]
    elif test in STAND_IN:
        metafunc.parametrize("stand_in", STAND_IN[test], indirect=True)


def pytest_collection_modifyitems(config, items):
    ours = [
        item for item in items if "rdpnet" in item.nodeid and not (DEPLOY and item.function.__name__ in TRAIN_FORM_ONLY)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
