"""Carries pictures to short vectors that a flow can learn, and the flow's samples back, by an autoencoder."""

from jkoflow.images.autoencoder import Autoencoder, AutoencoderConfig
from jkoflow.images.autoencoder_training import train_autoencoder
from jkoflow.images.latent import AUTOENCODER_FILE, IMAGES_FILE, LATENTS_FILE, prepare_latents, show_samples

__all__ = [
    "AUTOENCODER_FILE",
    "IMAGES_FILE",
    "LATENTS_FILE",
    "Autoencoder",
    "AutoencoderConfig",
    "prepare_latents",
    "show_samples",
    "train_autoencoder",
]
