"""What counts as right: the answer in the box, and whether it is accepted.

Conventions: L lmms-eval (letters with brackets and stops, text of an option), V VLMEvalKit (a letter alone; two letters are
no answer), M math-verify (values of numbers and formulas), O our own decision, said in `docs/data.md`.
"""

COLOURS = ("red", "blue", "dark blue", "green")
"""Choices of the first two lists; blue is right, B."""

CHOICE_ACCEPTED = [
    ("B", "L"), ("b", "L"), ("(B)", "L"), ("(b)", "L"), ("B.", "L"), ("B:", "L"), ("B)", "L"), (" B ", "L"), ("B\n", "L"),
    ("B. blue", "L"), ("(B) blue", "L"), ("B: Blue", "L"), ("B) blue.", "L"), ("B blue", "L"), ("blue", "L"), ("BLUE.", "L"),
    ("B, blue", "O"), ("B - blue", "O"), ("B – blue", "O"), ("B — blue", "O"), ("(B), blue", "O"),
    ("$B$", "O"), ("\\(B\\)", "O"), ("\\[B\\]", "O"), ("$\\text{B}$", "O"), ("\\text{B}", "L"), ("\\textrm{B}", "O"),
    ("\\textbf{B}", "O"), ("\\textit{B}", "O"), ("\\mathrm{B}", "L"), ("\\mathbf{B}", "O"), ("\\mathit{B}", "O"),
    ("\\mathsf{B}", "O"), ("\\texttt{B}", "O"), ("\\text{(B)}", "O"), ("\\text{B. blue}", "O"), ("\\text{blue}", "O"),
    ("\\textbf{(B)} blue", "O"), ("\\text {B}", "O"), ("\\mathbf{\\text{B}}", "O"),
    ('"B"', "O"), ("'B'", "O"), ("“B”", "O"), ("`B`", "O"), ("**B**", "L"), ("*B*", "O"), ('"blue"', "O"), ("**(B) blue**", "O"),
    ("Option B", "O"), ("option B", "O"), ("Option (B)", "O"), ("Choice B", "O"), ("Answer: B", "O"), ("Answer is B", "O"),
    ("B (blue)", "O"), ("[B]", "O"), ("{B}", "O"), ("B;", "O"), ("$B$.", "O"), ("‘B’", "O"), ("The answer is B", "L"),
    ("The correct answer is (B).", "L"), ("**B.** blue", "O"), ("**(B)** blue", "O"), ("B!", "O"), ("blue;", "O"),
    ("Option B: blue", "O"), ("Ｂ", "L"), ("（B）", "L"), ("\\ B", "O"), ("B\\,", "O"),
]  # fmt: skip

CHOICE_REFUSED = [
    ("A", "V"), ("C", "V"), ("E", "V"), ("G", "V"), ("A or B", "V"), ("A, B", "V"), ("B, A", "V"), ("AB", "V"), ("B and C", "V"),
    ("B/C", "V"), ("A B", "V"), ("B, red", "O"), ("B. red", "O"), ("A. blue", "O"), ("A, blue", "O"), ("B dark blue", "O"),
    ("Based on the picture", "L"), ("Blue-ish", "O"), ("bluebird", "O"), ("Both", "L"), ("not B", "O"), ("B?A", "O"),
    ("dark blue", "L"), ("C. dark blue", "L"), ("red", "L"), ("Option A", "O"), ("Option", "O"), ("Option B or C", "O"),
    ("Option B, red", "O"), ("", "V"), ("()", "V"), ("$ $", "O"), ("\\text{}", "O"), ("\\text{A}", "O"), ("$A$", "O"), ("?", "V"),
    ("2", "O"), ("B1", "O"), ("Bb", "O"), ("\\mathbf{C}", "O"), ('"A"', "O"), ("none of them", "L"), ("blue or green", "O"),
    ("B (red)", "O"), ("[A]", "O"), ("The answer is A", "L"), ("The answer is not B", "O"), ("**A.** blue", "O"), ("[B, C]", "O"),
]  # fmt: skip

OPEN_ACCEPTED = [
    # given, gold
    ("Stop", "STOP", "L"), ("stop.", "Stop", "L"), ("\\text{Stop}", "Stop", "M"), ('"Stop"', "Stop", "O"), ("**Stop**", "Stop", "O"),
    ("$\\textbf{Stop}$", "Stop", "O"), ("  no  entry ", "No entry", "O"), ("Café", "café", "O"), ("ｓｔｏｐ", "stop", "O"),
    ("50\\%", "50%", "O"), ("50%", "50\\%", "O"), ("50 %", "50%", "O"), ("50", "50%", "O"), ("50%", "50", "O"), ("$50\\%$", "50%", "O"),
    ("12.5%", "12.50%", "O"), ("\\$12", "12", "O"), ("12", "$12", "O"), ("$12", "\\$12", "O"), ("\\$1,200", "1200", "O"),
    ("\u22125", "-5", "O"), ("-5", "\u22125", "O"), ("\u22120.5", "-1/2", "M"), ("7", "7", "L"), ("7.0", "7", "M"), ("7.", "7", "L"),
    ("1/2", "0.5", "M"), ("\\frac{1}{2}", "0.5", "M"), ("\\dfrac{1}{2}", "1/2", "M"), ("0.50", "\\frac{1}{2}", "M"),
    ("1,000", "1000", "M"), ("1000", "1,000", "M"), ("12,345.60", "12345.6", "M"), ("+7", "7", "O"), (".5", "0.5", "M"),
    ("$7$", "7", "M"), ("\\(7\\)", "7", "M"), ("\\mathrm{7}", "7", "M"), ("\\sqrt{4}", "\\sqrt{4}", "M"), ("3\\,000", "3 000", "O"),
    ("007", "007", "O"), ("10:30", "10:30", "O"), ("B 12 345", "b 12 345", "O"), ("2024-05-01", "2024-05-01", "O"),
    ("{7}", "{7}", "O"), ("\\le 7", "\\le 7", "O"), ("A & B", "A \\& B", "O"), ("snake\\_case", "snake_case", "O"), ("No. 5", "No. 5", "O"),
    ("1{,}000", "1000", "M"), ("{7}", "7", "O"), ("–5", "-5", "O"), ("-$5", "-5", "O"), ("-5", "-$5", "O"), ("90^\\circ", "90°", "O"),
    ("90^{\\circ}", "90°", "O"), ("‘Stop’", "Stop", "O"), ("Stop!", "stop", "O"), ("10²", "10²", "O"), ("$7$.", "7", "M"),
    ("\\frac{\\pi}{2}", "\\pi/2", "M"),
]  # fmt: skip

OPEN_REFUSED = [
    ("stops", "stop", "L"), ("Stop sign", "Stop", "L"), ("", "stop", "L"), ("top", "stop", "L"), ("Cafe", "Café", "O"),
    ("0.5", "50%", "O"), ("5000%", "50", "O"), ("50%", "0.5", "O"), ("0.5%", "50%", "O"), ("500%", "50%", "O"), ("5%", "50%", "O"),
    ("\\le 7", "7", "O"), ("\\leq 7", "7", "O"), ("\\ge 7", "7", "O"), ("< 7", "7", "O"), ("> 7", "7", "O"), ("≤ 7", "7", "O"),
    ("\\approx 7", "7", "O"), ("\\pm 7", "7", "O"), ("\\ne 7", "7", "O"), ("\\neq 7", "7", "O"), ("7", "\\le 7", "O"), ("\\lt 7", "7", "O"),
    ("17", "7", "M"), ("7", "17", "M"), ("-7", "7", "M"), ("7.1", "7", "M"), ("70", "7", "M"), ("1/3", "0.33", "M"),
    ("7", "007", "O"), ("007", "7", "O"), ("-07", "-7", "O"), ("0041", "41", "O"), ("10:30", "10.30", "O"), ("1030", "10:30", "O"),
    ("Tram 41", "41", "O"), ("41", "Tram 41", "O"), ("41 or 42", "41", "O"), ("41, 42", "41", "O"), ("[7, 8]", "7", "O"),
    ("(7, 8)", "7", "O"), ("7-8", "7", "O"), ("\\{7\\}", "7", "O"), ("7 m", "7", "O"), ("7 km", "7 m", "O"), ("2024-05-01", "2024", "O"),
    ("1.000", "1000", "O"), ("1 000", "1000", "O"), ("seven", "7", "O"), ("VII", "7", "O"), ("7^2", "49", "O"), ("9**9**9", "1", "O"),
    ("-5", "5", "M"), ("$-12", "12", "O"), ("12€", "$12", "O"),
    ("7%", "$7", "O"), ("\\$5", "5%", "O"), ("\\gg 7", "7", "O"), ("\\lesssim 7", "7", "O"), ("\\cong 7", "7", "O"), ("\\simeq 7", "7", "O"),
    ("\\geqq 7", "7", "O"), ("\\not= 7", "7", "O"), ("\\lfloor 7\\rfloor", "7", "O"), ("\\alpha=7", "7", "O"), ("x=7", "7", "O"),
    ("10²", "102", "O"), ("2¹⁰", "210", "O"), ("H₂O", "H2O", "O"), ("90°", "90", "O"),
]  # fmt: skip
