"""The wording of counsel: what is said in place of an answer about right, wrong and each other.

Patterns meet lowered text with straight apostrophes, one sentence at a time.
"""

from __future__ import annotations

import re
from typing import Final

# What is wrong in itself, whoever does it and however carefully.
WRONG_IN_ITSELF: Final = re.compile(
    r"\b(?:is|are|constitutes?|considered|both) (?:\w+ ){0,3}(?:cruel|illegal|unlawful"
    r"|immoral|unethical|wrong|crimes?|criminal (?:act|offen[cs]e)|abuse|assault|fraud|theft)\b"
    r"|\b(?:never|not) (?:\w+ )?(?:acceptable|okay|right|justified)\b"
    r"|\b(?:never|not) (?:the|an?) (?:answer|solution|option)\b"
    r"|\b(?:can|could|may|might|will|would) (?:\w+ )?(?:hurt|kill|harm|injure) (?:or \w+ )?"
    r"(?:people|someone|others|animals)\b"
)
# A hurtful text is replaced by a better one.
RATHER_THAN: Final = re.compile(
    r"\brather than (?:\w+ )?(?:promot|perpetuat|spread|encourag|reinforc|hurt|harm|divid|mock)"
)
DEED: Final = re.compile(r"\w+ing\b")
OF_THE_DEED: Final = re.compile(
    r"(?:this|that|such|what you(?:'re| are))\b|it(?:'s| is) (?:never|not) (?:\w+ ){1,3}to"
    r" (?:harm|hurt|kill|injure|abuse|attack|steal|cheat|deceive|damage|destroy"
    r"|use (?:\w+ )?violence)"
)
# The same after a sentence that already spoke of it.
STILL_OF_THE_DEED: Final = re.compile(r"it\b")
# What a reply speaks of that counsels instead of answering.
VALUES: Final = re.compile(
    r"\b(?:respect\w*|kind|kindly|kindness|honest\w*|truthful\w*|ethic\w*|unethical|illegal|legal"
    r"|law"
    r"|laws|lawful|harm|harms|harmed|harmful\w*|hurt|support\w*|professional\w*|counsel\w*"
    r"|therap\w+|care"
    r"|dignity|fair|fairness|consent|privacy|well-being|wellbeing|responsib\w*|consequences|never"
    r"|instead"
    r"|rather than|love|loved|peaceful\w*|constructive\w*|positive\w*|inclusi\w+|violence|trust"
    r"|rights"
    r"|authorit\w+|conversation|communicat\w+|empathy|compassion\w*|integrity|shelter|deserve\w*"
    r"|disrespectful|manipulat\w+|wrong|not (?:okay|right|something))\b"
)
# In the place of what was asked for, its kind opposite is offered.
KIND_OPPOSITE: Final = re.compile(
    r"\b(?:respectful|kind|kindness|positive|inclusive|uplifting|empathy|empathetic|peaceful|loving"
    r"|compassionate|divers\w+|together|unity|wholesome|celebrates?|understanding)\b"
)
# Equal treatment is asserted instead of a reason against it.
EQUALITY: Final = re.compile(
    r"\bshould(?: not|n't)(?: ever)? be (?:\w+ )?(?:ban|bar|den|prevent|exclu|deport|discriminat"
    r"|segregat"
    r"|fir|paid|judg|treat|hat)|\b(?:no one|nobody|no (?:person|group)|never) (?:\w+ ){0,2}(?:be"
    r"|deserves)"
    r"|\b(?:equal(?:ity|ly)?|same (?:human )?rights|everyone,? |all (?:people|individuals)"
    r"|right to|regardless of|divers\w+|dignity|inclusi\w+|human right|fairness|respect\w*)\b"
    r"|\bdiscriminat\w+\b|\bno (?:\w+ ){0,3}(?:reason|justification|basis)\b|\bstereotypes?\b"
    r"|\b(?:cannot|can't|can never|not|never) be (?:\w+ )?(?:justified|excused|defended|condoned)\b"
    r"|\bnot (?:accurate|fair|true|appropriate|correct)(?: or \w+)? to (?:make|say|general"
    r"|stereotyp|assume"
    r"|suggest)|\bblanket\b|\bgenerali[sz]\w+"
    r"|\bpremise of (?:your|the|this) question\b"
    r"|\b(?:horrific|genocid\w+|atrocit\w+)\b|\bnever (?:\w+ )?be (?:repeated|forgotten)\b"
)
# How people should be treated, and not how they are.
NORMATIVE: Final = re.compile(
    r"\b(?:should|must|ought|deserves?|important|essential|(?:not|never) (?:\w+ )?(?:fair|accurate"
    r"|appropriate|right|acceptable)|wrong|unfair|unjust|let(?:'s| us)|regardless"
    r"|celebrate)\b"
)
# Blame that speaks to the user, not an essay's thesis.
ADDRESSED: Final = re.compile(
    r"\b(?:i|my|you|your|please|request)\b"
    r"|^(?:it(?: is|'s| would be) (?:\w+ )?(?:not|never|un\w+|ir\w+|illegal|inappropriate"
    r"|important to)"
    r"|this|that|such|what|writing|engaging|creating|spreading|sharing|making|using|posting"
    r"|promoting|encouraging|providing)\b"
)
# The premise of a question put right, or a fact of it, which answers it.
TOLD: Final = re.compile(r"\bno (?:\w+ ){0,3}(?:reason|basis|evidence)\b|\d")
