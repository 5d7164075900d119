"""NOAH's evolutionary search for a subnet (arXiv 2206.04673, section 3.3). It builds on AutoFormer's search.

Details that the paper does not specify: a module of depth n is in the first n blocks of the ViT. Mutation draws a new
depth with `depth_probability` and each size again with `mutation_probability`, as AutoFormer does. NOAH's code
(e9c55f3, evolution.py) changes depths only. Crossover takes each complete module from one of the two parents.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flexlora.baselines.noah import MODULES, Subnet
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import number, whole

# The number of draws for one candidate after which a small space counts as exhausted.
TRIES = 100


@dataclass(frozen=True)
class SearchSpace:
    """The possible subnets. A module is in the first n blocks (n from `depths`) and has one of `sizes` in each."""

    blocks: int
    sizes: tuple[int, ...]
    depths: tuple[int, ...]
    """A depth above `blocks` means all blocks."""

    def draw(self, draws: random.Random) -> Subnet:
        """Draw a subnet: for each module uniformly a depth, and then each of its sizes."""
        return Subnet(*(self._padded(self._fitted((), draws)) for _ in MODULES))

    def mutate(self, subnet: Subnet, size_probability: float, depth_probability: float, draws: random.Random) -> Subnet:
        """Make a random variation of this subnet."""

        def mutated(sizes: tuple[int, ...]) -> tuple[int, ...]:
            there = tuple(size for size in sizes if size)
            if draws.random() < depth_probability:
                there = self._fitted(there, draws)
            return self._padded(
                tuple(draws.choice(self.sizes) if draws.random() < size_probability else size for size in there)
            )

        return Subnet(*(mutated(getattr(subnet, name)) for name in MODULES))

    def _fitted(self, sizes: tuple[int, ...], draws: random.Random) -> tuple[int, ...]:
        """Draw a depth, and shorten `sizes` to it or extend them to it by drawn sizes."""
        depth = min(draws.choice(self.depths), self.blocks)
        return sizes[:depth] + tuple(draws.choice(self.sizes) for _ in range(depth - len(sizes)))

    def _padded(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Extend `sizes` by zeros, so that there is one number for every block."""
        return sizes + (0,) * (self.blocks - len(sizes))


def crossover(one: Subnet, other: Subnet, draws: random.Random) -> Subnet:
    """Take each module from one of the two parents."""
    return Subnet(*(getattr(draws.choice((one, other)), name) for name in MODULES))


@dataclass
class Evolution(Checked):
    """The settings of the search. The defaults are the published numbers for VTAB-1K."""

    generations: int = setting(15, "Generations after the first, which is random.", whole, at_least=0)
    population: int = setting(50, "Number of subnets that a generation scores.", whole)
    parents: int = setting(10, "Number of best subnets that mutations and crossovers start from.", whole, at_least=0)
    mutations: int = setting(25, "Mutations of each generation.", whole, at_least=0)
    crossovers: int = setting(25, "Crossovers of each generation.", whole, at_least=0)
    mutation_probability: float = setting(0.2, "Probability of drawing a size again.", number, at_least=0, at_most=1)
    depth_probability: float = setting(0.4, "Probability of drawing a depth again.", number, at_least=0, at_most=1)


@dataclass
class Search:
    """A search. `state` saves it and `Search.of` restores it."""

    generation: int = 0
    scores: dict[Subnet, float] = field(default_factory=dict)
    """The scores of all tried subnets, in the order in which they were tried."""

    def best(self, count: int = 1) -> list[Subnet]:
        """Return the best subnets so far. Among equal scores, earlier subnets come first."""
        return sorted(self.scores, key=lambda subnet: -self.scores[subnet])[:count]

    def run(
        self,
        space: SearchSpace,
        evolution: Evolution,
        seed: int,
        allowed: Callable[[Subnet], bool],
        score: Callable[[Subnet], float],
        after_generation: Callable[[], object],
    ) -> Subnet:
        """Find the best `allowed` subnet of all generations. Generation 0 is random.

        Raises:
            ValueError: no drawn subnet is allowed.
        """
        while self.generation <= evolution.generations:
            # Each generation has its own random numbers, so that a restarted generation gives the same result.
            self._try_generation(space, evolution, random.Random(f"{seed} {self.generation}"), allowed, score)
            self.generation += 1
            after_generation()
        if not self.scores:
            raise ValueError("no drawn subnet is small enough")
        return self.best()[0]

    def _try_generation(
        self,
        space: SearchSpace,
        evolution: Evolution,
        draws: random.Random,
        allowed: Callable[[Subnet], bool],
        score: Callable[[Subnet], float],
    ) -> None:
        parents, before = self.best(evolution.parents), len(self.scores)

        def try_some(count: int, candidate: Callable[[], Subnet]) -> None:
            wanted = len(self.scores) + count
            for _ in range(TRIES * count):
                if len(self.scores) == wanted:
                    return
                subnet = candidate()
                if subnet not in self.scores and allowed(subnet):
                    self.scores[subnet] = score(subnet)

        if parents:
            chances = evolution.mutation_probability, evolution.depth_probability
            try_some(evolution.mutations, lambda: space.mutate(draws.choice(parents), *chances, draws))
            try_some(evolution.crossovers, lambda: crossover(draws.choice(parents), draws.choice(parents), draws))
        try_some(max(0, evolution.population - (len(self.scores) - before)), lambda: space.draw(draws))

    def state(self) -> dict[str, Any]:
        """Return the state of the search in JSON-ready form."""
        rows = [[*(list(getattr(subnet, name)) for name in MODULES), score] for subnet, score in self.scores.items()]
        return {"generation": self.generation, "scores": rows}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Search":
        """Restore the search from `state`."""
        scores = {Subnet(*(tuple(sizes) for sizes in row[:-1])): row[-1] for row in state["scores"]}
        return cls(state["generation"], scores)
