"""What a person says about the workers on a Ray cluster."""

from dataclasses import dataclass

from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """The workers of --runner ray; --workers says how many do what needs no GPU."""

    ray_address: str | None = None
    """With --runner ray: HOST:PORT of the cluster's head; by default RAY_ADDRESS, or the cluster
    that this machine belongs to."""
    gpu_workers: int | None = None
    """With --runner ray: workers of the steps that must have a GPU (--score.device cuda), one GPU
    each; as many as the cluster has GPUs by default."""
    worker_cpus: float = 1.0
    """With --runner ray: CPUs that each worker asks for."""
    worker_memory_bytes: int = 0
    """With --runner ray: memory that each worker asks for, in bytes; 0 leaves it uncounted."""
    attempts: int = 3
    """With --runner ray: times that the job begins anew without having got further, when workers
    or machines are lost, before it gives up."""

    def __post_init__(self) -> None:
        if self.gpu_workers is not None and self.gpu_workers < 0:
            raise ConfigError(f"--gpu-workers must be at least 0, got {self.gpu_workers}")
        if not self.worker_cpus > 0:
            raise ConfigError(f"--worker-cpus must be positive, got {self.worker_cpus}")
        if self.worker_memory_bytes < 0:
            raise ConfigError(
                f"--worker-memory-bytes must be at least 0, got {self.worker_memory_bytes}"
            )
        if self.attempts < 1:
            raise ConfigError(f"--attempts must be at least 1, got {self.attempts}")
