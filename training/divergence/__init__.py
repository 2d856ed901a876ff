"""Losses and gradients that leave what training can mend: seen, passed over or ended, and explained."""
