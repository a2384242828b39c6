"""What a run needs and how fast it should go, asked of the compiler before anything is paid for."""
