"""Memory lent again and again."""

import torch

from aiodiloco.collective.scratch import Scratch


def test_what_comes_back_is_lent_again_and_two_never_share():
    scratch = Scratch()
    with scratch.lend(1000, torch.float32) as first, scratch.lend(1000, torch.float32) as second:
        assert first.shape == second.shape == (1000,)
        first.fill_(1.0)
        second.fill_(2.0)
        assert first.eq(1.0).all()
        addresses = {first.data_ptr(), second.data_ptr()}
    with scratch.lend(500, torch.float64) as again:
        assert again.dtype == torch.float64
        assert again.data_ptr() in addresses


def test_a_larger_piece_is_made_where_the_free_ones_are_too_small():
    scratch = Scratch()
    with scratch.lend(10, torch.float32):
        pass
    with scratch.lend(1 << 20, torch.float32) as large:
        large.fill_(1.0)
        assert large.numel() == 1 << 20
