"""The layers of an adapted model, and the weight that each applies."""

import torch


def layers_of(adapted):
    """Adapted layers by name, as `peft` has made them."""
    model = adapted.model.get_base_model()
    return {name: model.get_submodule(name) for name in sorted(adapted.lesson.backbone.shapes)}


def applied(layer):
    """The weight that a layer applies, whatever it is made of."""
    with torch.no_grad():
        zero = torch.zeros(1, layer.in_features)
        return (layer(torch.eye(layer.in_features)) - layer(zero)).mT.clone()
