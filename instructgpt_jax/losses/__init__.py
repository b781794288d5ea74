"""Pure equations on arrays: one function per equation, jittable, no models.

Every loss that is a mean takes `normalizer`, the denominator of the whole
batch. Given it, a microbatch returns its share of the batch's mean, so that the
shares (and their gradients, and every metric) add up to those of one batch.
"""
