"""Flax networks for priors, classifiers and values."""

from rtbjax.nets import classifier as classifier
from rtbjax.nets import convolution as convolution
from rtbjax.nets import mlp as mlp
from rtbjax.nets import pretrained as pretrained
from rtbjax.nets import transformer as transformer
from rtbjax.nets import unet as unet
from rtbjax.nets import value as value
