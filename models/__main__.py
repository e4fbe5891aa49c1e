"""`python -m models`: lists all models of the zoo, their presets and weights."""

from models.app import presets
from models.codec import registry
from models.io import terminal

if __name__ == "__main__":
    terminal.prepare()
    print(presets.table(registry.CARDS.values()))
