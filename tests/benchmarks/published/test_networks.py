"""Layers of the published networks: their products and weights are those that their authors and others state."""

from __future__ import annotations

import pytest

from benchmarks.published import networks

#: Millions of products: the papers; for SqueezeNet 1.1, ResNet of 2015 and VGG-16 the counts of Netscope.
PRODUCTS = {
    "mobilenet_v1": 569,
    "mobilenet_v2": 300,
    "mobilenet_v3_large": 219,
    "mobilenet_v3_small": 56,
    "efficientnet_b0": 390,
    "efficientnet_lite0": 385,
    "resnet18": 1814,
    "resnet50": 3858,
    "squeezenet": 388,
    "googlenet": 1583,
    "vgg16": 15470,
    "vit_b32_384": 13000,
}
#: Millions of weights, as published with their biases.
WEIGHTS = {
    "mobilenet_v1": 4.2,
    "mobilenet_v2": 3.5,
    "resnet18": 11.7,
    "resnet50": 25.6,
    "squeezenet": 1.24,
    "vgg16": 138.4,
}


def test_every_network_has_a_stated_total():
    assert PRODUCTS.keys() == set(networks.NAMES)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_that_are_stated(name):
    assert networks.products(name) / 1e6 == pytest.approx(PRODUCTS[name], rel=0.015)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_that_are_stated(name):
    assert networks.weights(name) / 1e6 == pytest.approx(WEIGHTS[name], rel=0.015)


@pytest.mark.parametrize("name", networks.NAMES)
def test_each_layer_reads_and_writes_and_has_the_products_of_its_weights(name):
    for layer in networks.layers(name):
        assert layer.kind in networks.KINDS
        assert layer.read > 0 < layer.written
        assert (layer.macs > 0) == (layer.steps == 0)
        if layer.weights and layer.kind != "depthwise":
            assert layer.macs % layer.weights == 0  # each weight is used once for each output position


def test_a_window_keeps_or_halves_the_size_and_a_pool_of_caffe_hangs_over():
    net = networks.Builder(227, 227, 3).conv(64, 3, 2, pad=0)
    assert (net.h, net.w) == (113, 113)
    assert net.pool(3, 2).h == 56
    assert networks.Builder(7, 7, 8).conv(4, 3, 2).h == 4
