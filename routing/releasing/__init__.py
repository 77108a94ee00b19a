"""How a new version takes the place of an old one: who is asked, what is seen of both, and what follows from it.

- `arms`: which version a request gets.
- `evidence`: what a gateway counts, and the counts of all gateways together.
- `distributions`: the tails of the distributions that decisions rest on.
- `gates`: whether the new version keeps to its limits, beyond chance.
- `progress`: the state machine of a release: what follows, step by step.
- `comparison`: whether two answers agree.
- `clusters`: where disagreements are found more often than elsewhere.
- `significance`: how two arms differ, for people.
- `split`: what a gateway's router holds of all this.

What nodes tell each other of it is in `meshnode.rollout`, the plan in `meshnode.state.release`.
"""
