import faiss
import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in the processes: on busy cores, OpenMP threads that wait for each other take most of the time."""
    faiss.omp_set_num_threads(1)
