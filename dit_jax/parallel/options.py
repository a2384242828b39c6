"""Options of XLA's compilers, by platform."""

# What each does:
#   windowed einsum: by default the TPU's compiler turns a matmul with a divided operand into a loop
#     of pieces that go round by permutes. By its own estimate that doubles DiT-XL's step under FSDP
#     (384 against 155 ms on v5e:4x4; not measured on a chip); a threshold that is never reached
#     turns it off, and layers are gathered ahead of their use.
COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
}


def compiler_options(platform: str) -> dict[str, str]:
    """Returns the options for a platform's compiler; none where the defaults are best."""
    return dict(COMPILER_OPTIONS.get(platform, {}))
