"""MaskGIT-Edit: parts of a picture sampled again, led by painted strokes.

The ids of the painted picture, `guide_ids`, lead what is sampled inside the stroke. Rules of the
MaskGIT-Edit project (github.com/joel99/maskgit_edit): context guidance, self-guidance, the
iterative form. Of this one: guide ids shown in place of the mask without tuning (`zero_shot`), and
`tilt`, whose confidence is a usable knob. A method is a `base.StrokeMethod` and a line in
`methods.METHODS`.
"""
