from dataclasses import replace

from training.metrics.flops import ModelSize, peak_flops


def test_the_arithmetic_of_a_step_is_counted_by_the_formula() -> None:
    size = ModelSize(
        language_parameters=1000,
        head_parameters=300,
        is_language_trained=True,
        layers=2,
        hidden_size=10,
        vision_parameters=100,
        vision_tokens_per_image=5,
    )
    attention, tower = 6 * 2 * 10 * 30 * 50, 2 * 100 * 5 * 3
    assert size.step_flops(50, 20, 30.0, 3) == 6 * (1000 * 50 + 300 * 20) + attention + tower
    frozen = replace(size, is_language_trained=False)
    assert frozen.step_flops(50, 20, 30.0, 3) == 4 * (1000 * 50 + 300 * 20) + attention + tower
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("an unknown device") is None
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40") is None
