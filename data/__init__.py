"""Images as indexes, batches as plans, and two loaders that carry the plans out.

What a batch holds (which images, which crops, which flips) is arithmetic on (seed, epoch, step): see `plan`.
A loader only decodes what the plan says. So a position is all that it takes to continue a run bit for bit,
whatever the loader, and the order does not depend on how many ranks share the work.
"""
