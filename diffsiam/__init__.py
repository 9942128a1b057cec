"""DiffSiam: self-supervised learning that joins SimSiam with a frozen diffusion model."""
