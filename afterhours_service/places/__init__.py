"""Where a member is shown: the blur, and the distance that others see."""
