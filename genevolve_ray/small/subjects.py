"""The subjects of scenes: OpenMoji pictures that 64 pixels can show, with their English names.

Common subjects are those that the renderer has learned by name. Rare ones it has seen in references alone, so that a
program that shows one has to find its picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_TABLE = {
    "animals": (
        """1F408 cat, 1F415 dog, 1F404 cow, 1F407 rabbit, 1F416 pig, 1F40E horse, 1F418 elephant, 1F422 turtle, 1F40D
        snake, 1F41F fish/fish, 1F419 octopus/octopuses, 1F427 penguin, 1F986 duck, 1F989 owl, 1F98B
        butterfly/butterflies, 1F41D bee, 1F980 crab, 1F438 frog""",
        """1F405 tiger, 1F406 leopard, 1F403 water buffalo/water buffaloes, 1F402 ox/oxen, 1F411 sheep/sheep, 1F410 goat,
        1F42A camel, 1F413 rooster, 1F421 blowfish/blowfish, 1F420 tropical fish/tropical fish, 1F42C dolphin,
        1F40B whale, 1F988 shark, 1F40A crocodile, 1F98E lizard, 1F40C snail, 1F41E ladybug, 1F41C ant, 1F982
        scorpion, 1F577 spider, 1F98D gorilla, 1F98C deer/deer, 1F98F rhinoceros/rhinoceroses, 1F99B
        hippopotamus/hippopotamuses, 1F998 kangaroo, 1F999 llama, 1F994 hedgehog, 1F99D raccoon, 1F9A1 badger,
        1F9A6 otter, 1F9A5 sloth, 1F9AB beaver, 1F9AC bison/bison, 1F9A3 mammoth, 1F995 sauropod, 1F9A4
        dodo/dodos, 1F9A2 swan, 1F9A9 flamingo/flamingos, 1F99A peacock, 1F99C parrot, 1F985 eagle, 1F983
        turkey, 1F54A dove, 1F987 bat, 1F99E lobster, 1F991 squid/squid, 1F990 shrimp/shrimp""",
    ),
    "food": (
        """1F34E apple, 1F34C banana, 1F353 strawberry/strawberries, 1F349 watermelon, 1F34B lemon, 1F347 bunch of
        grapes/bunches of grapes, 1F955 carrot, 1F345 tomato/tomatoes, 1F354 hamburger, 1F355 slice of
        pizza/slices of pizza, 1F369 doughnut, 1F382 birthday cake, 1F95A egg, 1F35E loaf of bread/loaves of
        bread""",
        """1F34D pineapple, 1F350 pear, 1F351 peach/peaches, 1F352 pair of cherries/pairs of cherries, 1F95D kiwi, 1F951
        avocado/avocados, 1F346 eggplant, 1F33D ear of corn/ears of corn, 1F966 broccoli/broccoli, 1F952
        cucumber, 1F9C4 head of garlic/heads of garlic, 1F9C5 onion, 1F965 coconut, 1F950 croissant, 1F968
        pretzel, 1F956 baguette, 1F9C0 wedge of cheese/wedges of cheese, 1F9C7 waffle, 1F32E taco, 1F32D hot
        dog, 1F364 fried shrimp/fried shrimp, 1F363 piece of sushi/pieces of sushi, 1F9C1 cupcake, 1F36D
        lollipop, 1F36A cookie, 1F36F honey pot""",
    ),
    "plants": (
        """1F332 pine tree, 1F337 tulip, 1F33B sunflower, 1F339 rose, 1F335 cactus/cactuses, 1F344 mushroom""",
        """1F334 palm tree, 1F340 four-leaf clover, 1F341 maple leaf/maple leaves, 1F33A hibiscus/hibiscuses, 1FAB7
        lotus/lotuses, 1FAB4 potted plant, 1F330 chestnut, 1F331 seedling""",
    ),
    "vehicles": (
        """1F697 car, 1F68C bus/buses, 1F6B2 bicycle, 2708 airplane, 1F680 rocket, 26F5 sailboat, 1F69C tractor""",
        """1F681 helicopter, 1F682 steam locomotive, 1F691 ambulance, 1F692 fire engine, 1F695 taxi/taxis, 1F6F5 motor
        scooter, 1F6F6 canoe, 1F6F8 flying saucer, 1F6FA auto rickshaw, 1F6FC roller skate, 1F6F7 sled, 1F6A2
        ship, 1F6F0 satellite, 1F6F9 skateboard""",
    ),
    "objects": (
        """1F3E0 house, 1F388 balloon, 2602 umbrella, 26BD soccer ball, 1F511 key, 1F4D5 book, 1F514 bell, 1F451 crown,
        1F3B8 guitar, 1F4F7 camera, 2B50 star, 1FA91 chair, 1F528 hammer, 2615 cup of coffee/cups of coffee""",
        """1F9EE abacus/abacuses, 1F9ED compass/compasses, 1F52C microscope, 1F52D telescope, 1FA97 accordion, 1FA95
        banjo, 1F3BA trumpet, 1F3BB violin, 1F3B7 saxophone, 1F941 drum, 1FA80 yo-yo, 1FA81 kite, 1F9F8 teddy
        bear, 1FA86 nesting doll, 1F3FA amphora/amphoras, 23F3 hourglass/hourglasses, 2693 anchor, 2696
        balance scale, 1F56F candle, 1F9F2 magnet, 1FA83 boomerang, 1F9FA basket, 1FAA3 bucket, 1FAD6 teapot,
        1FA93 axe, 1FA9B screwdriver, 1FA9C ladder, 1F9F9 broom, 1F6E1 shield, 1F3F9 bow and arrow/bows and
        arrows, 1F3A9 top hat, 1F9E6 pair of socks/pairs of socks, 1F97E hiking boot, 1F460 high-heeled shoe,
        1F393 graduation cap, 1F3C6 trophy/trophies, 1F3B2 die/dice, 1F4FB radio/radios, 260E telephone, 1F4A1
        light bulb""",
    ),
}


@dataclass(frozen=True)
class Subject:
    """Name one thing that scenes show."""

    id: str
    """The name of its picture, as `1F408`."""
    name: str
    """In singular, as `water buffalo`."""
    plural: str
    group: str
    """One of animals, food, plants, vehicles, objects."""
    common: bool
    """True if the renderer knows it by name."""

    def counted(self, count: int) -> str:
        """Return its name in singular for 1, else in plural."""
        return self.name if count == 1 else self.plural


@cache
def every_subject() -> tuple[Subject, ...]:
    """Return all subjects, in a fixed order."""
    found = []
    for group, texts in _TABLE.items():
        for text, common in zip(texts, (True, False), strict=True):
            for entry in " ".join(text.split()).split(", "):
                code, _, names = entry.strip().partition(" ")
                name, _, plural = names.partition("/")
                found.append(Subject(code, name, plural or f"{name}s", group, common))
    return tuple(found)
