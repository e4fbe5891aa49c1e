"""`python -m models`: lists all models of the zoo, their presets and weights."""

from models.app import presets
from models.codec import registry

if __name__ == "__main__":
    print(presets.table(registry.CARDS.values()))
