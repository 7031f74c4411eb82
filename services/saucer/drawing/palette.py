"""Colours that people with any colour vision tell apart, those of Okabe and Ito; styles say what colour alone must not.

Source: M. Okabe, K. Ito, Color universal design, 2008, https://jfly.uni-koeln.de/color/
"""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, INK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#1A1A1A", "#6B6B6B"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
STYLES = ("-", "--", "-.", ":")
BOXES = (ORANGE, SKY, GREEN, YELLOW, PURPLE, VERMILION, BLUE)  # lighter ones first: they are drawn on photographs
