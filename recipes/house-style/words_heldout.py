"""Everything a held-out draft is put together from: other sentences, names, cities and machines than `words_train.py` has. The marks are explained there."""

OPENERS = [
    "We are very grateful for your message and for your interest in our services!",
    "Thank you for contacting our customer department.",
    "We regret the trouble that you have experienced.",
    "It is with great pleasure that we reply to your letter.",
    "We kindly thank you for bringing this to our attention.",
    "Please excuse our late answer.",
]
CLOSERS = [
    "If there is anything else that we can assist you with, please do not hesitate to ask!",
    "We appreciate your understanding and remain at your service.",
    "We hope to hear from you soon.",
    "Thank you for your continued trust in us!",
    "",
]
LEADINS = ["We wish to inform you that ", "Kindly be informed that ", "In addition, ", "We are happy to tell you that ", "Please note that "]

UNITS = [
    "the <mechanic|mechanic> {person} will <commence|start> the installation on {date}<, and it is anticipated to be finished within|. It should be done in> {n} days.",
    "the parcel <with the number |>{order} <was dispatched|was sent> from {city} <at approximately|at about> {time}.",
    "<we are currently unable to furnish you with|we have no> {part} for the {machine}<; additional stock will arrive upon|. More stock comes on> {date}.",
    "<the total sum for the repair amounts to|the repair costs> {price}<, of which {percent} percent is required in advance|. We need {percent} percent first>.",
    "the contract for the {machine} <will terminate upon|ends on> {date}<, therefore kindly contact|. Call> {person} <prior to|before> that day.",
    "<kindly discontinue the operation of|stop> the {machine} <in the event that|if> the pressure <exceeds|is above> {n} bar.",
    "<our colleague {person} has examined|{person} checked> the {part}<, and subsequently modified|. Then we changed> the setting to {n}.",
    "<we have located|we found> a crack in the {part}<, consequently the {machine} should remain|. The {machine} stays> off until {date}.",
    "<you are requested to verify|check> the oil level of the {machine} every {n} days.",
    "the course in {city} <commences at|starts at> {time} and <concludes after|ends after> {n} hours.",
    "<it is required to replace|replace> the {part} after {n} hours of use<, and the work should be conducted by|. The work is for> {person}.",
    "<we would recommend that you purchase|buy> {n} spare parts of the type {part}<, the price of which amounts to|. They cost> {price}.",
    "<in order to obtain a refund of|to get back> {price}<, kindly transmit|, send> the form {order} to {person}.",
    "<our office in {city} is operational|our office in {city} is open> until {time}<, and the telephone number is|. The number is> {phone}.",
    "the crane <possesses a capacity of|lifts> {m} kilograms<, however the hook is only permitted to carry|. The hook may carry only> {n}.",
    "<we received your complaint regarding|we got your complaint on> the {machine}<, and {person} is currently examining it|. {person} is checking it now>.",
    "<please retain|keep> the bill {order} for {n} years.",
    "the engine <ceased to operate at|stopped at> {time}<, because the {part} did not have sufficient|. The {part} had not enough> water.",
    "<utilise|use> only the {part} from our shop in {city}<, where it can be purchased for|. It costs> {price}.",
    "<the inspection demonstrated that|we saw that> {n} of the {m} screws were loose<, therefore {person} tightened them|. {person} tightened them>.",
]

FIRST = ["Ines", "David", "Priya", "Samuel", "Yuki", "Carla", "Felix", "Amara"]
LAST = ["Okafor", "Nair", "Weber", "Tanaka", "Moreno", "Eriksen", "Baker", "Costa"]
CITIES = ["Basel", "Seville", "Tampere", "Bristol", "Gdansk", "Nantes"]
MACHINES = ["Norvik HX-310", "Stellan 250", "Corvus Pro", "Dornier K18", "Juno Eco", "Penrose 64"]
PARTS = ["bearing", "nozzle", "coupling", "gasket", "display", "brake"]
