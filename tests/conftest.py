"""One thread for every test, and the fixtures that several files share.

What is asserted bit for bit holds at a fixed number of threads, and small tensors are faster so.
"""

import ranks

ranks.serve()               # forks; torch is not here yet

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left():
    """The next file of tests may want a group of its own."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory):
    """The toy policy's folder, made once: see toy.py."""
    import toy                          # imports the training scripts, which few test files need

    return toy.make_world(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def run_toy(toy_world, tmp_path):
    """run_toy(*flags) trains the toy policy in an empty folder -> exit status, stage folder."""
    import toy

    with toy.working_folder(tmp_path):
        yield lambda *flags, **more: toy.train(toy_world, *flags, **more)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Small corpora as prepare.corpora builds them, for reading alone."""
    import corpus_rows
    from prepare import corpora
    copies = corpus_rows.write_sources(tmp_path_factory.mktemp("copies"))
    out = tmp_path_factory.mktemp("built")
    corpora.build(out, corpus_rows.SIZES, local=copies, say=lambda line: None)
    return out
