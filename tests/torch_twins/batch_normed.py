"""Random values for networks with batch norms."""

import torch


@torch.no_grad()
def randomise_(model, seed):
    """Gives every tensor random values, and activations about unit size."""
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.normal_(0, 0.3)
    return model.eval()
