"""How a policy is asked: what is said, else as it was trained, else the method's own."""

from dataclasses import dataclass

from mgpo.asking.settings import protocol_for
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm


@dataclass
class Served:
    """A policy that does not know what its model was trained with, as behind an endpoint."""

    budget: PixelBudget = PixelBudget()
    box_form: BoxForm | None = BoxForm()

    def set_budget(self, budget):
        self.budget = budget


def test_a_served_model_sees_as_many_pixels_as_it_was_trained_with():
    trained = {"min_pixels": 20 * 784, "max_pixels": 36 * 784}
    policy = Served()
    assert protocol_for(policy, trained=trained).budget == policy.budget == PixelBudget(20 * 784, 36 * 784)
    assert protocol_for(Served(), max_pixels=30 * 784, trained=trained).budget == PixelBudget(20 * 784, 30 * 784)
    assert protocol_for(Served(), max_pixels=16 * 784, trained=trained).budget == PixelBudget(3 * 784, 16 * 784)
    assert protocol_for(Served()).budget == PixelBudget()
