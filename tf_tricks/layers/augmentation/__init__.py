"""Augmentation: random changes of images, a few numbers for each image and one pass over the pixels."""

from tf_tricks.layers.augmentation.augmentation import Augmentation
from tf_tricks.layers.augmentation.cut_mix import CutMix
from tf_tricks.layers.augmentation.mix_up import MixUp
from tf_tricks.layers.augmentation.rand_augment import RandAugment
from tf_tricks.layers.augmentation.random_brightness import RandomBrightness
from tf_tricks.layers.augmentation.random_color_jitter import RandomColorJitter
from tf_tricks.layers.augmentation.random_contrast import RandomContrast
from tf_tricks.layers.augmentation.random_crop import RandomCrop
from tf_tricks.layers.augmentation.random_erasing import RandomErasing
from tf_tricks.layers.augmentation.random_flip import RandomFlip
from tf_tricks.layers.augmentation.random_gaussian_blur import RandomGaussianBlur
from tf_tricks.layers.augmentation.random_gaussian_noise import RandomGaussianNoise
from tf_tricks.layers.augmentation.random_grayscale import RandomGrayscale
from tf_tricks.layers.augmentation.random_grid_mask import RandomGridMask
from tf_tricks.layers.augmentation.random_hue import RandomHue
from tf_tricks.layers.augmentation.random_perspective import RandomPerspective
from tf_tricks.layers.augmentation.random_resized_crop import RandomResizedCrop
from tf_tricks.layers.augmentation.random_rgb_shift import RandomRGBShift
from tf_tricks.layers.augmentation.random_rotation import RandomRotation
from tf_tricks.layers.augmentation.random_salt_and_pepper import RandomSaltAndPepper
from tf_tricks.layers.augmentation.random_saturation import RandomSaturation
from tf_tricks.layers.augmentation.random_shear import RandomShear
from tf_tricks.layers.augmentation.random_shot_noise import RandomShotNoise
from tf_tricks.layers.augmentation.random_translation import RandomTranslation
from tf_tricks.layers.augmentation.random_zoom import RandomZoom
from tf_tricks.layers.augmentation.trivial_augment import TrivialAugment

__all__ = [
    "Augmentation",
    "CutMix",
    "MixUp",
    "RandAugment",
    "RandomBrightness",
    "RandomColorJitter",
    "RandomContrast",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGaussianNoise",
    "RandomGrayscale",
    "RandomGridMask",
    "RandomHue",
    "RandomPerspective",
    "RandomRGBShift",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomSaltAndPepper",
    "RandomSaturation",
    "RandomShear",
    "RandomShotNoise",
    "RandomTranslation",
    "RandomZoom",
    "TrivialAugment",
]
