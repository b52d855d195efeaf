"""Everything that is looked for in a solution, by name, in the order of the questions."""

from zipmix.checker.item import Item
from zipmix.checker.items_conditionals import CONDITIONALS, DENSITIES
from zipmix.checker.items_steps import AFFINITY, BOUNDS, COMPLETION, E_STEP, EM, M_STEP

ITEMS: dict[str, Item] = {
    item.name: item for item in (*CONDITIONALS, E_STEP, M_STEP, *BOUNDS, EM, AFFINITY, COMPLETION, *DENSITIES)
}
