"""The latent explorer: one page that runs a trained decoder in the browser."""
