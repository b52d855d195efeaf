"""Work shared out among threads: parts in order, side by side, none within a part, and torch left as it was."""

import contextlib
import os
import signal
import threading

import pytest
import torch

from zipmix.counts.threads import PART, in_parts, threads_for_parts


@pytest.fixture(params=[2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_parts_come_in_order_and_cover_all_rows(n_threads):
    bounds = in_parts(10, PART, lambda start, stop: (start, stop))
    assert len(bounds) == n_threads
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == 10


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 1, 1), (1, 10 * PART, 1), (2, PART, 2), (10, PART // 4, 2)])
def test_small_work_is_not_shared_out(n, size, expected, n_threads):
    assert len(in_parts(n, size, lambda start, stop: stop - start)) == expected


@pytest.mark.parametrize("here", [False, True], ids=["torch shares this thread", "this thread is for parts"])
def test_parts_run_side_by_side_each_in_one_thread(here, n_threads):
    """All wait for one another, which they could not one by one."""
    meet = threading.Barrier(n_threads, timeout=30)

    def part(start, stop):
        meet.wait()
        return threading.current_thread(), torch.get_num_threads()

    with threads_for_parts() if here else contextlib.nullcontext():
        found = in_parts(n_threads, PART, part)
    assert len({thread for thread, _ in found}) == n_threads
    assert (threading.current_thread() is found[0][0]) == here
    assert all(n == 1 for _, n in found)
    assert torch.get_num_threads() == n_threads


def test_sharing_out_leaves_the_threads_of_the_process_as_they_are(n_threads):
    """torch hands the number that is set anywhere to every thread that comes after."""
    seen = []

    def part(start, stop):
        late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        late.start()
        late.join()

    in_parts(n_threads, PART, lambda start, stop: stop)
    torch.set_num_threads(n_threads)
    in_parts(n_threads, PART, part)
    assert seen == [n_threads] * n_threads


def test_a_part_shares_nothing_out_again(n_threads):
    nested = in_parts(n_threads, PART, lambda start, stop: len(in_parts(8, PART, lambda low, high: high)))
    assert nested == [1] * n_threads


def test_threads_are_kept_for_parts_and_given_back(n_threads):
    with threads_for_parts():
        assert torch.get_num_threads() == 1
        with threads_for_parts():
            assert len(in_parts(10, PART, lambda start, stop: stop)) == n_threads
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("where", [0, 1])
def test_what_goes_wrong_in_a_part_is_told_and_the_next_work_is_done(where, n_threads):
    def part(start, stop):
        if (start > 0) == where:
            raise KeyboardInterrupt
        return stop

    with pytest.raises(KeyboardInterrupt):
        in_parts(n_threads, PART, part)
    assert torch.get_num_threads() == n_threads
    assert in_parts(n_threads, PART, lambda start, stop: stop)[-1] == n_threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is what it is about")
def test_a_forked_process_has_threads_of_its_own(n_threads):
    in_parts(n_threads, PART, lambda start, stop: stop)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # where it waits for threads that it does not have
        found = in_parts(n_threads, PART, lambda start, stop: stop)
        os._exit(0 if found[-1] == n_threads else 1)
    assert os.waitpid(child, 0)[1] == 0
