"""What `snt backends` imports: a description, and nothing heavy."""

from snt.backend import LazyBackend

backend = LazyBackend(
    name="example",
    summary="the whole model on the CPU, whatever else there is",
    implementation="example_backend.on_cpu",
    abilities=("detect", "score", "generate", "patch"),
)
