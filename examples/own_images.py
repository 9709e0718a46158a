"""Pictures of one's own: two classes of shapes in a folder, a vae trained on them, and its log p(x).

    python examples/own_images.py
    elbolab explore latest

The first takes some 20 seconds and leaves shapes/ and the run in the working folder; the second writes a page that
decodes in the browser.
"""

import random
from pathlib import Path

from PIL import Image, ImageDraw

import elbolab

IMAGES, EPOCHS, EVALUATED = 400, 20, 5
WIDTH, HEIGHT = 24, 20
FOLDER = Path("shapes")


def draw(shape: str, chance: random.Random) -> Image.Image:
    """A disc or a square of any size and place, warm on a cold ground."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (20, 30, chance.randint(60, 140)))
    size = chance.randint(6, 12)
    left, top = chance.randint(1, WIDTH - size - 2), chance.randint(1, HEIGHT - size - 2)
    pen, box = ImageDraw.Draw(picture), (left, top, left + size, top + size)
    (pen.ellipse if shape == "disc" else pen.rectangle)(box, fill=(255, chance.randint(90, 220), 40))
    return picture


def main() -> None:
    chance = random.Random(0)
    for shape in ("disc", "square"):
        (FOLDER / shape).mkdir(parents=True, exist_ok=True)
        for number in range(IMAGES // 2):
            draw(shape, chance).save(FOLDER / shape / f"{number:03}.png")
    fields = {"dataset": f"folder:{FOLDER}", "latent_dim": 8, "sigma": 0.1, "epochs": EPOCHS, "batch_size": 16}
    run = elbolab.train_model("vae", elbolab.MODELS["vae"].Config.parse(fields))
    found = elbolab.evaluate_run(run, elbolab.EvaluateConfig(images=EVALUATED, simulated=0))
    print(f"test log p(x): {found['test/log_px']:.1f} nats; a constant image has {found['test/log_px_constant']:.1f}")


if __name__ == "__main__":
    main()
