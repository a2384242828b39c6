"""What is not run for real, and why. A row that no command needs any longer fails the tests."""

# A command with one of these in it is parsed and checked, but not run.
PARSED = {
    "configs/dit_xl_imagenet256.py": "ImageNet's latents",
    "configs/dit_moe_g_imagenet256.py": "ImageNet's latents",
    "configs/dit_xl_images.py": "the weights of Stable Diffusion's VAE",
    "DiT-XL-2-256x256.pt": "DiT's published weights",
    "SiT-XL-2-256x256.pt": "SiT's published weights",
    "runs/dit_xl ": "DiT's published weights, converted",
    "runs/dit_dh ": "RAE's published weights, converted",
    "sd-vae-ft-": "the weights of Stable Diffusion's VAE",
    "dinov2": "the weights of DINOv2",
    "stage2_model.pt": "RAE's published weights",
    "weights/rae ": "RAE's published weights, converted",
    "lpips.pth": "the weights of VGG-16 and LPIPS",
    "vgg16-": "the weights of VGG-16",
    "dino_deitsmall8_pretrain.pth": "DINO's weights",
    "pt_inception-": "the weights of FID's Inception-v3",
    "VIRTUAL_imagenet256_labeled.npz": "ADM's reference, and Inception's weights",
    "photos.npz": "Inception's weights",
    "gs://": "a bucket",
    "--topology": "the TPU's compiler: tests/planning",
    "JAX_PROCESS_ID": "two processes at once: tests/parallel/test_hosts.py",
}

# Programs that are not this project's.
FOREIGN = {
    "export": "sets variables for the commands after it",
    "gcloud": "a cloud account",
    "kubectl": "a cluster",
    "on_all": "the shell function of docs/tpu.md: a cloud account",
    "on_all()": "the same, where it is defined",
    "pre-commit": "makes environments of its own from the network",
    "sbatch": "a SLURM cluster",
    "xpk": "a cloud account",
    "git": "the history of a checkout",
}

# Blocks that show something: nothing in them can be run.
SHOWN = {
    "text": "output, folders, formulas",
    "bibtex": "a citation",
    "dockerfile": "docker, and packages from the network",
}

# Packages that installation lines may name besides those of the project's own lists.
PACKAGES = {"gcsfs", "kubernetes", "libtpu", "pre-commit", "tensorboard", "tensorflow-datasets"}

# Commands and Python that are run only among the slow tests: they take more than a few seconds.
SLOW = (
    "photos_rae",
    "efficientnet_lite0",
    "configs/digits_lit.py",
    "digits_clear.py",
    "placed.py",
    "digits_placed",
    "dit_jax models",
    "--compile-only",
    "--parallel.fsdp 4",
    "jax.disable_jit()",
)
