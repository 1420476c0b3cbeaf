# The experiment of "VRM: Teaching Reward Models to Understand Authentic Human Preferences" (arXiv 2603.04974).
#
#   scored prompts -> pairs -> reward models -> scores on evaluation sets -> Table 2, Figures 1-5
#                           -> policies: SFT -> preference methods -> scores -> Table 2
#                                            -> PPO against a reward model -> over-optimisation
#                                       each of them: answers -> judgments -> Table 1, Figure 6
#
# A stage is a rule, a rule is one `vrm` command, and stages speak only through files under results/<run>/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/reward.smk"
include: "workflow/rules/policy.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        collect(
            "results/{run}/tables/{table}.md",
            run=CONFIG.run,
            table=CONFIG.report.tables,
        ),
        collect(
            "results/{run}/figures/{figure}.pdf",
            run=CONFIG.run,
            figure=CONFIG.report.figures,
        ),
        get_pages(),
